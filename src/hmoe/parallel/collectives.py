"""How fast the processes of this run exchange weights and gradients, as FSDP2 does: measured, for simulations."""

import functools
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.distributed as dist

_SMALL_NUMBERS, _LARGE_NUMBERS = 1024, 4 * 2**20  # of all processes together, float32


def measure_link(device: str, rounds: int) -> dict[str, float]:
    """Return what an all-gather and a reduce-scatter take: latency, and bytes that each process sends in a second.

    What is gathered is then copied into place, and what is reduced comes from such a copy, which counts.
    """
    size = dist.get_world_size()
    # Later versions of PyTorch have other names for them.
    all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

    def gather(numbers: int) -> None:
        whole = torch.empty(numbers, device=device)
        all_gather(whole, torch.ones(numbers // size, device=device))
        whole.clone()

    def reduce(numbers: int) -> None:
        whole = torch.ones(numbers, device=device)
        reduce_scatter(torch.empty(numbers // size, device=device), whole.clone())

    latency = min(_time(functools.partial(each, _SMALL_NUMBERS), device, rounds) for each in (gather, reduce))
    sent = 4 * _LARGE_NUMBERS * (size - 1) / size
    rates = []
    for each in (gather, reduce):
        seconds = _time(functools.partial(each, _LARGE_NUMBERS), device, rounds)
        rates.append(sent / max(seconds - latency, 1e-9))
    return {
        "gather_bytes_per_second": rates[0],
        "reduce_bytes_per_second": rates[1],
        "latency_seconds": latency,
    }


def _time(call: Callable[[], None], device: str, rounds: int) -> float:
    """Return the median seconds of a call, after two that do not count."""
    seconds = []
    for _ in range(rounds + 2):
        dist.barrier()
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return median(seconds[2:])
