"""Micro-batches on their way to the device: one copy a step, made ready while the GPU computes the last."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import torch

from hmoe.data.batches import Batches, MicroBatch
from hmoe.data.packing import Tokens


class PartSource(Protocol):
    """The micro-batches of step n as a pure function of n, such as `hmoe.data.batches.Batches`."""

    def parts(self, step: int) -> Sequence[MicroBatch[Tokens]]:
        """Return the micro-batches of a step that this process computes, in host memory."""
        ...


class OwnParts:
    """Of every step's micro-batches those that one of several processes computes; it reads no others."""

    def __init__(self, batches: Batches, rank: int, size: int) -> None:
        self._batches = batches
        self._indices = range(rank, batches.config.num_micro_batches, size)

    def parts(self, step: int) -> list[MicroBatch[Tokens]]:
        """Return the micro-batches of a step numbered rank, rank + size, rank + 2 size, ..."""
        return self._batches.parts(step, self._indices)


class Feed:
    """Micro-batches of a run's steps. On a CPU they lie in the source's arrays, and no thread is started.

    On a GPU a thread of its own reads the next step's parts into pinned memory while the GPU computes this
    one. Whatever goes wrong there is raised by the step that needs them.
    """

    def __init__(self, source: PartSource, device: str) -> None:
        self._source, self._device = source, torch.device(device)
        self._reader = None if device == "cpu" else ThreadPoolExecutor(1, "hmoe-feed")
        self._ahead: dict[int, Future[_Pinned]] = {}

    def take(self, step: int) -> list[MicroBatch[torch.Tensor]]:
        """Return the parts of a step on the device, and begin to read those of the next one."""
        if self._reader is None:
            return place_parts(self._source.parts(step), self._device)
        # Steps follow each other: but for the first, the one asked for is ready or being read.
        current = self._ahead.pop(step, None) or self._reader.submit(self._read, step)
        self._ahead = {step + 1: self._reader.submit(self._read, step + 1)}
        return current.result().copy(self._device)

    def close(self) -> None:
        """End the thread; parts that nobody asks for any more are dropped."""
        if self._reader is not None:
            self._reader.shutdown(wait=True, cancel_futures=True)

    def _read(self, step: int) -> "_Pinned":
        return _pin(self._source.parts(step))


class _Pinned(NamedTuple):
    """Parts of a step as one table (parts, 2, B, L) in memory that a GPU copies from by itself."""

    indices: list[int]
    table: torch.Tensor

    def copy(self, device: torch.device) -> list[MicroBatch[torch.Tensor]]:
        """Return the parts on the device, by one copy, which the host does not wait for."""
        # Parts are views of one table on the device: a copy for each would be as many launches.
        placed = self.table.to(device, non_blocking=True).unbind(0)
        return [
            MicroBatch(index, *tables.unbind(0)) for index, tables in zip(self.indices, placed, strict=True)
        ]


def _pin(parts: Sequence[MicroBatch[Tokens]]) -> _Pinned:
    tables = [torch.from_numpy(table_BL) for part in parts for table_BL in (part.tokens_BL, part.targets_BL)]
    return _Pinned(
        [part.index for part in parts], torch.stack(tables).view(-1, 2, *tables[0].shape).pin_memory()
    )


def place_parts(
    parts: Sequence[MicroBatch[Tokens]] | Sequence[MicroBatch[torch.Tensor]], device: torch.device
) -> list[MicroBatch[torch.Tensor]]:
    """Return micro-batches on the device, wherever they are now: arrays in host memory, or tensors."""
    # Pageable memory would be copied to a GPU while the host waits, so arrays go through pinned memory.
    on_host = [part for part in parts if not isinstance(part.tokens_BL, torch.Tensor)]
    if on_host and device.type != "cpu":
        return _pin(on_host).copy(device)
    return [
        MicroBatch(
            part.index,
            *(torch.as_tensor(table_BL, device=device) for table_BL in (part.tokens_BL, part.targets_BL)),
        )
        for part in parts
    ]
