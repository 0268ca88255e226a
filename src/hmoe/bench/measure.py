"""Times, limits of the machine, and the file a measurement is kept in."""

import datetime
import importlib.metadata
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

import hmoe
from hmoe.errors import ConfigError
from hmoe.kernels import native

Run = Callable[[], object]


def synchronize(device: str) -> None:
    """Wait for what was launched."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(run: Run, device: str) -> float:
    """Wall time of one call."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def interleaved(
    runs: Mapping[str, Run], rounds: int, warm: int, device: str, before: Run = lambda: None
) -> dict[str, list[float]]:
    """Seconds of every run in every round; one after the other, so that all meet the same noise, and each in every place."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(warm + rounds):
        before()
        names = list(runs)[number % len(runs) :] + list(runs)[: number % len(runs)]
        for name in names:
            elapsed = seconds(runs[name], device)
            if number >= warm:
                times[name].append(elapsed)
    return times


def best(run: Run, device: str, tries: int = 7) -> float:
    """Fastest of some calls, in seconds: a limit is what the machine can do, not what it does on average."""
    run()
    return min(seconds(run, device) for _ in range(tries))


def peak_flops(dtype: torch.dtype, device: str) -> float:
    """FLOP/s of the library's best large matrix product."""
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / best(lambda: a @ b, device)


def read_bandwidth(device: str) -> float:
    """Bytes/s of reading memory that is in no cache near a core: the sum of a gigabyte."""
    numbers = torch.ones((1 << 30) // 8, dtype=torch.float64, device=device)
    return numbers.numel() * 8 / best(numbers.sum, device)


def check_device(device: str) -> None:
    """Raise ConfigError unless this PyTorch can use it."""
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"--device {device}: must be cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch sees no GPU; nearest choice: cpu")


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "processor": processor(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hmoe": hmoe.__version__,
        "kernels": native.describe(),
        **{name: version(name) for name in ("triton", "transformers", "scattermoe", "sonic-moe", "megablocks")},
        "date": datetime.date.today().isoformat(),
    }


def version(distribution: str) -> str | None:
    """Installed version, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """Name of the processor, with AMX said since its name may not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor()
    return name + (", AMX" if "amx_bf16" in native.features() else "")


def save(folder: Path, name: str, content: dict[str, Any]) -> Path:
    """Write a dated JSON file; a second of the same day replaces the first."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{datetime.date.today().isoformat()}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def median(values: Iterable[float]) -> float:
    """As in statistics."""
    return statistics.median(values)
