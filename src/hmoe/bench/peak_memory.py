"""The most bytes of tensors that a training step has at one time, against what was planned for it."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from hmoe.bench.training import Training
from hmoe.config.memory import count_memory
from hmoe.parallel.workers import Workers


def measure_peak_memory(training: Training) -> int:
    """Return the largest number of bytes that tensors of a training have in one step, of this process.

    On a GPU it is PyTorch's own figure, `torch.cuda.max_memory_allocated`. On a CPU PyTorch counts none: the profiler
    tells of each allocation of the step, and what the training keeps between steps is added. Both are less than what
    the operating system counts, as memory lies free between tensors.

    Args:
        training: that has taken a step before, so that its optimiser has its moments.
    """
    if training.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        training()
        return torch.cuda.max_memory_allocated()
    from torch.profiler import ProfilerActivity, profile  # noqa: PLC0415 - slow to import, and rarely asked for

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler says on stderr that it begins and ends
    kept = sum({storage.data_ptr(): storage.nbytes() for storage in _list_kept(training)}.values())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        training()
    assert profiler.profiler is not None
    results = profiler.profiler.kineto_results
    assert results is not None
    events = [event for event in results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return kept + most


def _list_kept(training: Training) -> Iterator[torch.UntypedStorage]:
    """Yield the memory of weights, buffers and moments; of each that is shared, this process's part."""
    states = training.optimizer.state.values()
    moments = (value for state in states for value in state.values() if isinstance(value, torch.Tensor))
    for tensor in (*training.model.parameters(), *training.model.buffers(), *moments):
        own = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        yield own.untyped_storage()


def compare_memory(training: Training, workers: Workers) -> dict[str, int | None]:
    """Return the bytes of the process that has most, what the recipe's plan says, and what the system has counted.

    The last is of all that the process has done so far, None where no system tells.
    """
    own = [
        _read_resident_bytes(),
        measure_peak_memory(training),
    ]  # in this order: the profiler needs some, too
    resident, most = zip(*workers.gather_values(own), strict=True)
    return {
        "peak_memory_bytes": max(most),
        "planned_memory_bytes": count_memory(training.config, training.device, workers.size),
        "resident_bytes": max((each for each in resident if each is not None), default=None),
    }


def _read_resident_bytes() -> int | None:
    """Return the most memory that this process has had, as Linux counts it; None on other systems."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
