"""Where one call's time goes on a GPU: launches, busy time and the kernels that took longest."""

import time
from typing import Any

import torch

from hmoe.bench.measure import Run


def profile_call(run: Run, device: str, most: int) -> dict[str, Any]:
    """Profile one call: wall and busy milliseconds, launches, and the `most` longest kernels by name.

    On a CPU operators take the place of kernels; they contain each other, so that nothing adds up.
    """
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
    times: dict[str, list[float]] = {}
    for event in profiler.events() or ():
        milliseconds = event.time_range.elapsed_us() / 1e3
        if device == "cpu" or event.device_type == torch.autograd.DeviceType.CUDA:  # type: ignore[attr-defined]
            times.setdefault(event.name, []).append(milliseconds)
    longest = sorted(times.items(), key=lambda item: -sum(item[1]))[:most]
    return {
        "wall_ms": wall,
        "busy_ms": sum(map(sum, times.values())),
        "launches": sum(map(len, times.values())),
        "longest": [{"kernel": name[:120], "ms": sum(calls), "calls": len(calls)} for name, calls in longest],
    }
