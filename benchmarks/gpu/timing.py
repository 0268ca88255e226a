"""Milliseconds of calls one after the other, by CUDA events; by the clock on a CPU."""

import torch

from hmoe.bench.measure import Run, Span, time_call


def mean_milliseconds(run: Run, device: str, repeats: int = 10) -> float:
    """Return the mean of calls one after the other, the host's work included where it is the longer."""
    if device == "cpu":
        return 1e3 * time_call(run, device).seconds
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    with Span() as span:
        for _ in range(repeats):
            run()
    torch.cuda.synchronize()
    return 1e3 * span.seconds() / repeats
