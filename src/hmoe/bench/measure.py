"""Times, limits of the machine, and the file a measurement is kept in."""

import datetime
import functools
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

import hmoe
from hmoe.errors import ConfigError
from hmoe.kernels import native
from hmoe.parallel.workers import ONE_WORKER, Workers

Run = Callable[[], object]
LONG_PRODUCT_SECONDS = 0.5
RESULTS = Path("benchmarks/results")
FLUSH_BYTES = 1 << 28  # more than the L2 cache of any GPU
SLEEP_CYCLES = 2e9  # a second of `torch.cuda._sleep`, or a little more: no GPU's clock is faster
MOST_SLEEP_SECONDS = 0.05  # a call whose launches take longer has more of them than the GPU's queue holds


class Timing(NamedTuple):
    """How long a call took: `seconds` by CUDA events, on a CPU by the clock; `wall_seconds` by the clock."""

    seconds: float
    wall_seconds: float


@dataclass(frozen=True)
class BenchOptions:
    """How all of `hmoe bench` measures.

    Attributes:
        device: cpu or cuda.
        rounds: how many rounds the median is taken of.
        threads: how many of the CPU; None leaves PyTorch's number.
        out: folder of the result.
        say: prints a line.
        workers: processes that do together what is measured; the first one alone prints and writes.
    """

    device: str = "cpu"
    rounds: int = 15
    threads: int | None = None
    out: Path = RESULTS
    say: Callable[[str], None] = print
    workers: Workers = ONE_WORKER

    def prepare(self) -> None:
        """Check the device and set the threads."""
        check_device(self.device)
        if self.threads:
            torch.set_num_threads(self.threads)


class Span:
    """A context that measures the GPU's time between entering and leaving, by a pair of events."""

    def __enter__(self) -> "Span":
        self.begin, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        self.begin.record()
        return self

    def __exit__(self, *_: object) -> None:
        self.end.record()

    def seconds(self) -> float:
        """Return the time between the events; the GPU must have been waited for."""
        elapsed: float = self.begin.elapsed_time(self.end)
        return elapsed / 1e3


def time_call(run: Run, device: str, ahead_seconds: float = 0.0) -> Timing:
    """Time one call; on a GPU from an idle device and an L2 cache that holds nothing of it.

    Args:
        run: the call.
        device: cpu or cuda.
        ahead_seconds: how long the GPU sleeps first, while launches queue up: `seconds` is then its own work
            without waiting for Python, and the wall time means nothing.
    """
    if device == "cpu":
        start = time.perf_counter()
        run()
        elapsed = time.perf_counter() - start
        return Timing(elapsed, elapsed)
    _flush_buffer().zero_()  # writing more than the L2 cache holds leaves nothing else in it
    torch.cuda.synchronize()
    hold_queue(ahead_seconds)
    start = time.perf_counter()
    with Span() as span:
        run()
    torch.cuda.synchronize()
    elapsed = time.perf_counter() - start
    return Timing(span.seconds(), elapsed)


def hold_queue(seconds: float) -> None:
    """Make the GPU sleep, so that what is launched meanwhile waits in its queue."""
    if seconds:
        torch.cuda._sleep(int(SLEEP_CYCLES * min(seconds, MOST_SLEEP_SECONDS)))  # type: ignore[no-untyped-call]


@functools.cache
def _flush_buffer() -> torch.Tensor:
    return torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")


def kernel_milliseconds(run: Run, device: str, repeats: int = 20) -> float:
    """Return the median milliseconds of single calls, each a launch; the L2 cache is not flushed.

    The queue is filled behind a sleeping kernel, so no launch is waited for.
    """
    if device == "cpu":
        return 1e3 * time_call(run, device).seconds
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    hold_queue(0.005)
    spans = []
    for _ in range(repeats):
        with Span() as span:
            run()
        spans.append(span)
    torch.cuda.synchronize()
    return 1e3 * median(span.seconds() for span in spans)


def describe_timing(device: str, queued: bool = False) -> str:
    """Describe what the figures of a result are times of."""
    if device == "cpu":
        return "wall clock"
    start = "launches queued ahead" if queued else "from an idle GPU"
    return f"CUDA events, {start}, L2 flushed before each call; wall: clock, from an idle GPU"


def time_interleaved(
    runs: Mapping[str, Run], rounds: int, warm: int, device: str,
    before: Run = lambda: None, after: Run = lambda: None, queued: bool = False,
) -> dict[str, list[Timing]]:  # fmt: skip
    """Time every run in every round, one after the other; return each run's timings by name.

    All meet the same noise of the machine, and each takes every place in the order.

    Args:
        runs: calls by name.
        rounds, warm: how many rounds count, and how many go before them.
        device: cpu or cuda.
        before, after: called at the begin and the end of every round, never while the clock runs.
        queued: on a GPU every round goes twice, with `before` each time: `wall_seconds` is from an idle GPU,
            then `seconds` with the launches queued ahead.
    """
    times: dict[str, list[Timing]] = {name: [] for name in runs}
    for index in range(warm + rounds):
        # Each round begins with the next one: what ran before another run changes its caches and its clock.
        first = index % len(runs)
        names = list(runs)[first:] + list(runs)[:first]
        before()
        timings = {name: time_call(runs[name], device) for name in names}
        if queued and device == "cuda":
            before()
            for name in names:
                wall = timings[name].wall_seconds
                timings[name] = Timing(time_call(runs[name], device, ahead_seconds=wall).seconds, wall)
        after()
        for name in names if index >= warm else ():
            times[name].append(timings[name])
    return times


def median_seconds(timings: Iterable[Timing]) -> float:
    """Return the median of the timings' `seconds`."""
    return median(timing.seconds for timing in timings)


def median_wall(timings: Iterable[Timing]) -> float:
    """Return the median of the timings' `wall_seconds`."""
    return median(timing.wall_seconds for timing in timings)


def time_fastest(run: Run, device: str, tries: int = 7) -> float:
    """Return the seconds of the fastest of some calls: what the machine can do, not its average."""
    run()
    return min(time_call(run, device, ahead_seconds=0.005).seconds for _ in range(tries))


def choose_default_dtype(device: str) -> str:
    """Return bfloat16 where the hardware multiplies it, else float32, which is faster than emulation."""
    # An old processor emulates bfloat16, a thousand times slower.
    hardware = device == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bfloat16" if hardware else "float32"


def measure_peak_flops(dtype: torch.dtype, device: str) -> float:
    """Measure FLOP/s of the best large matrix product; of a smaller one where a large one takes seconds."""
    size, largest = (8192, 8192) if device == "cuda" else (512, 2048)
    while True:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        product = functools.partial(torch.mm, a, b)
        if size == largest or 8 * time_call(product, device).seconds > LONG_PRODUCT_SECONDS:
            return 2 * size**3 / time_fastest(product, device)
        size *= 2


def measure_read_bandwidth(device: str) -> float:
    """Measure bytes/s of reading memory that is in no cache near a core: the sum of a gigabyte."""
    numbers = torch.ones((1 << 30) // 8, dtype=torch.float64, device=device)
    return numbers.numel() * 8 / time_fastest(numbers.sum, device)


def check_device(device: str) -> None:
    """Raise ConfigError unless the device is cpu or cuda, and this PyTorch can use it."""
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"device = {device}: must be cpu or cuda", argument="device")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = cuda: PyTorch sees no GPU; nearest choice: cpu", argument="device")


def place_name(device: str) -> str:
    """Return where figures come from, as in the names of their files."""
    return "cuda" if device == "cuda" else f"cpu-{torch.get_num_threads()}threads"


def describe_machine(device: str) -> dict[str, Any]:
    """Return what the figures depend on: hardware, threads and versions, and the date."""
    return {
        "processor": name_processor(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hmoe": hmoe.__version__,
        "kernels": native.describe_library(),
        **{
            name: find_installed_version(name)
            for name in ("triton", "transformers", "scattermoe", "sonic-moe", "megablocks")
        },
        "date": datetime.date.today().isoformat(),
    }


def find_installed_version(distribution: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def name_processor() -> str:
    """Return the name of the processor, and whether it has AMX, which its name may not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor()
    return name + (", AMX" if "amx_bf16" in native.read_processor_features() else "")


def save_result(folder: Path, name: str, content: dict[str, Any]) -> Path:
    """Write a dated JSON file; a second of the same day replaces the first."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{datetime.date.today().isoformat()}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path
