"""Reading that several processes share: each holds the whole model and does a part, and every one gets all results.

Results are the same bits as those of one process that reads alone, because items are independent of each other and
are put together in their own order.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch

Item = TypeVar("Item")


class Workers(Protocol):
    """The processes that read together; the first one, 0, alone prints and writes files.

    Attributes:
        rank, size: number of this process, and of all.
    """

    rank: int
    size: int

    def gather_values(self, value: Any) -> list[Any]:
        """Return a JSON value of every process, in the order of their ranks."""
        ...

    def gather_tensors(self, tensors: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
        """Return the CPU tensors of every process, in the order of their ranks; to the first process alone."""
        ...

    def together(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which an error of one process is one of all."""
        ...


class OneWorker:
    """A process that reads alone."""

    rank, size = 0, 1

    def gather_values(self, value: Any) -> list[Any]:
        """Return the value alone."""
        return [value]

    def gather_tensors(self, tensors: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
        """Return the tensors alone."""
        return [list(tensors)]

    def together(self) -> contextlib.AbstractContextManager[None]:
        """Return a context that does nothing: there is nobody to tell."""
        return contextlib.nullcontext()


ONE_WORKER = OneWorker()


def share_work(workers: Workers, items: Sequence[Item], work: Callable[[Item], Any]) -> list[Any]:
    """Return what `work` makes of each item, a JSON value, in the order of the items and in every process.

    Each process takes every size-th item: let their cost change slowly from one to the next.
    """
    with workers.together():
        own = [work(item) for item in items[workers.rank :: workers.size]]
    if workers.size == 1:
        return own
    shares = workers.gather_values(own)
    return [shares[place % workers.size][place // workers.size] for place in range(len(items))]
