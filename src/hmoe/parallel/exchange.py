"""Rows that travel between processes, as many as each has for each, and their gradients the other way around."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from hmoe.kernels.exact import sum_pairs


class Splits(NamedTuple):
    """Rows that a process sends to each process of its group, and receives from each."""

    sent: Sequence[int]
    received: Sequence[int]

    def reverse(self) -> "Splits":
        """Return those of an answer with a row for each that came."""
        return Splits(self.received, self.sent)


def begin_exchange(
    rows: torch.Tensor, splits: Splits, group: dist.ProcessGroup
) -> tuple[torch.Tensor, dist.Work | None]:
    """Begin to send rows, in the order of the processes, and to receive others; wait before they are read."""
    arriving = rows.new_empty(sum(splits.received), *rows.shape[1:])
    work = dist.all_to_all_single(
        arriving, rows.contiguous(), list(splits.received), list(splits.sent), group=group, async_op=True
    )
    return arriving, work


def exchange_rows(rows: torch.Tensor, splits: Splits, group: dist.ProcessGroup) -> torch.Tensor:
    """Send rows, in the order of the processes, and return those that came; without gradient."""
    arriving, work = begin_exchange(rows, splits, group)
    if work is not None:
        work.wait()
    return arriving


class Transfer:
    """Rows on their way: what is computed between `begin` and `wait` hides it, in the backward pass too.

    Gradients of rows that came go back to those who sent them: they leave when the backward pass reaches `wait`, and
    are waited for at `begin`.
    """

    def __init__(self, splits: Splits, group: dist.ProcessGroup) -> None:
        self.splits, self._group = splits, group
        self._arriving: tuple[torch.Tensor, dist.Work | None] | None = None

    def begin(self, rows: torch.Tensor) -> torch.Tensor:
        """Begin to send, and return what to wait for."""
        ticket: torch.Tensor = _Begin.apply(rows, self)  # type: ignore[no-untyped-call]
        return ticket

    def wait(self, ticket: torch.Tensor) -> torch.Tensor:
        """Return the rows that came."""
        rows: torch.Tensor = _Wait.apply(ticket, self)  # type: ignore[no-untyped-call]
        return rows

    def start(self, rows: torch.Tensor, splits: Splits) -> None:
        """Begin an exchange in either direction."""
        self._arriving = begin_exchange(rows, splits, self._group)

    def end(self) -> torch.Tensor:
        """Return the rows of the exchange that was begun last."""
        assert self._arriving is not None
        (arriving, work), self._arriving = self._arriving, None
        if work is not None:
            work.wait()
        return arriving


class _Begin(torch.autograd.Function):
    """The begin of a transfer; in the backward pass its end. Autograd sees a ticket: the rows are not there yet."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, transfer: Transfer) -> torch.Tensor:
        ctx.transfer = transfer
        transfer.start(rows, transfer.splits)
        return rows.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, ticket: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.transfer.end(), None


class _Wait(torch.autograd.Function):
    """The end of a transfer; in the backward pass its begin."""

    @staticmethod
    def forward(ctx: Any, ticket: torch.Tensor, transfer: Transfer) -> torch.Tensor:
        ctx.transfer = transfer
        return transfer.end()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.transfer.start(gradient, ctx.transfer.splits.reverse())
        return gradient.new_zeros(()), None


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(index)
        ctx.length = len(table)
        return table.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (index,) = ctx.saved_tensors
        return sum_pairs(gradient, index, ctx.length), None


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, index: torch.Tensor, length: int) -> torch.Tensor:
        ctx.save_for_backward(index)
        return sum_pairs(rows, index, length)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return gradient.index_select(0, index), None, None


def take_rows(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return rows of a table; the gradients of a row that is taken several times are added up in their order."""
    rows: torch.Tensor = _TakeRows.apply(table, index)  # type: ignore[no-untyped-call]
    return rows


def sum_rows(rows: torch.Tensor, index: torch.Tensor, length: int) -> torch.Tensor:
    """Return a table of so many rows, each the sum of those whose index it is, in their order."""
    table: torch.Tensor = _SumRows.apply(rows, index, length)  # type: ignore[no-untyped-call]
    return table
