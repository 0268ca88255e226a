"""Batches on their way to the device: on a GPU one copy a step, made ready while the step before is computed."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch

from hmoe.data.packing import Tokens

Batch = tuple[Tokens, Tokens] | tuple[torch.Tensor, torch.Tensor]  # tokens and targets (B, L)


class Source(Protocol):
    """Batch n as a pure function of n, such as `hmoe.data.batches.Batches`."""

    def __getitem__(self, step: int) -> tuple[Tokens, Tokens]: ...


class Feed:
    """Batches of a run's steps. On a CPU they are the source's arrays, and no thread is started.

    On a GPU a thread of its own reads the next step's batch into pinned memory while the GPU computes this one. Whatever goes
    wrong there is raised by the step that needs the batch.
    """

    def __init__(self, source: Source, device: str) -> None:
        self._source, self._device = source, device
        self._reader = None if device == "cpu" else ThreadPoolExecutor(1, "hmoe-feed")
        self._ahead: dict[int, Future[torch.Tensor]] = {}

    def take(self, step: int) -> Batch:
        """The batch of a step; that of the next one is begun."""
        if self._reader is None:
            return self._source[step]
        current = self._ahead.pop(step, None) or self._reader.submit(self._read, step)
        self._ahead = {step + 1: self._reader.submit(self._read, step + 1)}
        tokens_BL, targets_BL = current.result().to(self._device, non_blocking=True).unbind(0)
        return tokens_BL, targets_BL

    def close(self) -> None:
        """End the thread; a batch that nobody asks for any more is dropped."""
        if self._reader is not None:
            self._reader.shutdown(wait=True, cancel_futures=True)

    def _read(self, step: int) -> torch.Tensor:
        return pin(self._source[step])


def pin(batch: tuple[Tokens, Tokens]) -> torch.Tensor:
    """Tokens and targets as one table (2, B, L) in memory that a GPU copies from while the host goes on."""
    return torch.stack([torch.from_numpy(table) for table in batch]).pin_memory()


def place(batch: Batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch on the device, wherever it is now."""
    tables = [table for table in batch if not isinstance(table, torch.Tensor)]
    if not tables:
        tokens_BL, targets_BL = (torch.as_tensor(table, device=device) for table in batch)
    elif device.type == "cpu":
        tokens_BL, targets_BL = (torch.from_numpy(table) for table in tables)
    else:
        tokens_BL, targets_BL = pin((tables[0], tables[1])).to(device, non_blocking=True).unbind(0)
    return tokens_BL, targets_BL


def split(batch: Batch, parts: int, device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Micro-batches (tokens_BL, targets_BL) of a batch whose sequences `parts` divides, on the device."""
    return zip(*(table.view(parts, -1, table.shape[1]).unbind(0) for table in place(batch, device)), strict=True)
