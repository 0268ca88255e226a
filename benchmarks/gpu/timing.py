"""Milliseconds by CUDA events; by the clock on a CPU."""

import statistics

import torch

from hmoe.bench.measure import Run, Span, hold_queue, time_call


def kernel_milliseconds(run: Run, device: str, repeats: int = 20) -> float:
    """Median of single calls, each a launch; the queue is filled behind a sleeping kernel, so no launch is waited for."""
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
    return 1e3 * statistics.median(span.seconds() for span in spans)


def milliseconds(run: Run, device: str, repeats: int = 10) -> float:
    """Mean of calls one after the other, the host's work included where it is the longer."""
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
