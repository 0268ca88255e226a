"""Milliseconds by CUDA events; by the clock on a CPU."""

import statistics
import time
from collections.abc import Callable

import torch

Run = Callable[[], object]


def kernel_milliseconds(run: Run, device: str, repeats: int = 20) -> float:
    """Median of single calls, each a launch; the queue is filled behind a sleeping kernel, so no launch is waited for."""
    if device == "cpu":
        return _clock(run, 1)
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    torch.cuda._sleep(10_000_000)  # about 5 ms
    events = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        events.append((begin, end))
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in events)


def milliseconds(run: Run, device: str, repeats: int = 10) -> float:
    """Mean of calls one after the other, the host's work included where it is the longer."""
    if device == "cpu":
        return _clock(run, 1)
    for _ in range(3):
        run()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(repeats):
        run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / repeats


def _clock(run: Run, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return 1e3 * (time.perf_counter() - start) / repeats


def profile(run: Run, device: str, most: int) -> dict[str, object]:
    """One call: wall and busy milliseconds, launches, and the kernels that took longest, by name."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities = [torch.profiler.ProfilerActivity.CUDA]
        torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profiler:
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        wall = 1e3 * (time.perf_counter() - start)
    total: dict[str, list[float]] = {}
    for event in profiler.events():
        span = event.time_range.elapsed_us() / 1e3
        if device == "cpu" or event.device_type == torch.autograd.DeviceType.CUDA:
            total.setdefault(event.name, []).append(span)
    longest = sorted(total.items(), key=lambda item: -sum(item[1]))[:most]
    return {
        "wall_ms": wall,
        "busy_ms": sum(map(sum, total.values())),
        "launches": sum(map(len, total.values())),
        "longest": [{"kernel": name[:120], "ms": sum(spans), "calls": len(spans)} for name, spans in longest],
    }
