"""Whole experts on single-threaded workers: small GEMMs split over all threads wait for each other more than they compute."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from hmoe.kernels.loop import Expert, Run, in_turn

LEAST_WORK = 1 << 16  # rows x units of a layer below which handing over costs more than it saves

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}  # by process and threads: a fork takes no threads along
_making = threading.Lock()


def on_workers(run: Run, experts: list[Expert]) -> None:
    """Run the experts, largest first, each on one thread; one that would keep the others waiting gets all threads."""
    threads = torch.get_num_threads()
    total = sum(e.work for e in experts)
    if threads == 1 or len(experts) == 1 or total < LEAST_WORK:
        return in_turn(run, experts)
    experts = sorted(experts, key=lambda e: -e.work)
    while experts and experts[0].work * threads > total:
        run(experts[0])
        total -= experts.pop(0).work
    inference = torch.is_inference_mode_enabled()

    def one(expert: Expert) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            run(expert)

    for _ in _pool(threads).map(one, experts):
        pass
    return None


def _pool(threads: int) -> ThreadPoolExecutor:
    key = (os.getpid(), threads)
    with _making:
        if key not in _pools:
            for (process, _), old in _pools.items():
                if process == key[0]:
                    old.shutdown(wait=False)
            _pools.clear()
            _pools[key] = _begin(threads)
        return _pools[key]


def _begin(threads: int) -> ThreadPoolExecutor:
    """All workers begin here, since set_num_threads also sets the number of threads begun later; then it is set back."""
    pool, barrier = ThreadPoolExecutor(threads, "hmoe-expert"), threading.Barrier(threads)

    def set_up(_: int) -> None:
        torch.set_num_threads(1)
        barrier.wait()

    list(pool.map(set_up, range(threads)))
    torch.set_num_threads(threads)
    return pool
