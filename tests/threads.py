"""Several processes as threads of one, for what they share in plain values: no start, no ports."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from hmoe.errors import PeerError

Result = TypeVar("Result")


class ThreadWorkers:
    """One of several threads that read together; what they tell each other goes through JSON."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, board: list[Any]) -> None:
        self.rank, self.size, self._barrier, self._board = rank, size, barrier, board

    def _exchange(self, value: Any) -> list[Any]:
        self._board[self.rank] = value
        self._barrier.wait(30)
        values = list(self._board)
        self._barrier.wait(30)
        return values

    def gather_values(self, value: Any) -> list[Any]:
        return [json.loads(text) for text in self._exchange(json.dumps(value))]

    def broadcast(self, value: Any) -> Any:
        return self._exchange(value)[0]

    def gather_tensors(self, tensors: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
        everybody = self._exchange([tensor.clone() for tensor in tensors])
        return everybody if self.rank == 0 else []

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        error = None
        try:
            yield
        except Exception as raised:
            error = raised
        errors = self._exchange(error)
        first = next((rank for rank, each in enumerate(errors) if each is not None), None)
        if first is None:
            return
        if first == self.rank:
            raise errors[first]
        raise PeerError(str(errors[first]), getattr(errors[first], "exit_code", 1))


def work_together(size: int, work: Callable[[ThreadWorkers], Result]) -> list[Result | Exception]:
    """What each of so many workers returned or raised."""
    barrier, board = threading.Barrier(size), [None] * size

    def call(rank: int) -> Result | Exception:
        try:
            return work(ThreadWorkers(rank, size, barrier, board))
        except Exception as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(call, range(size)))
