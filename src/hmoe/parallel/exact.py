"""Training steps that have the same bits with any number of processes: every sum has an order of its own."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from hmoe.parallel.fixed_order import TreeSum, measure_norm, sum_row_squares
from hmoe.parallel.ranks import Ranks


class ExactRanks(Ranks):
    """Processes of a mesh of one axis whose results do not depend on how many they are.

    Each micro-batch's gradients are sent to those who keep them by themselves, and added up there by `TreeSum` in
    the order of the micro-batches. The price is communication after every micro-batch instead of the last one.
    """

    exact = True

    def adopt(self, model: nn.Module, num_parts: int, gathered: Iterable[nn.Module] = ()) -> None:
        """Let a model, which `parallelize` has shared with gradients="sum", add up its gradients in order."""
        super().adopt(model, num_parts, gathered)
        # While weights are gathered a model's parameters are others than those that get the gradients.
        self._parameters = list(model.parameters())
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_custom_reduce_scatter(_ReduceInOrder(num_parts))  # type: ignore[arg-type]

    def begin_part(self, model: nn.Module, is_last: bool) -> None:
        """Drop what the part before left as gradients: only those after the last are sums of all."""
        for parameter in self._parameters:
            parameter.grad = None
        self._keep_gathered(is_last)

    def norm(self, gradients: Iterable[torch.Tensor]) -> torch.Tensor:
        """Return the norm of all gradients as a plain scalar, the same bits as one process has."""
        kept = list(gradients)
        rows = [sum_row_squares(g.to_local() if isinstance(g, DTensor) else g) for g in kept]
        shared = [place for place, gradient in enumerate(kept) if isinstance(gradient, DTensor)]
        lengths = [len(kept[place]) for place in shared]
        for place, whole in zip(shared, self._gather_rows([rows[p] for p in shared], lengths), strict=True):
            rows[place] = whole
        return measure_norm(rows, kept[0].dtype if kept else torch.float32)

    def _gather_rows(self, rows: Sequence[torch.Tensor], lengths: Sequence[int]) -> list[torch.Tensor]:
        """Return vectors of which every process gives its part, cut as `torch.chunk` cuts; one exchange for all."""
        if not rows:
            return []
        sizes = [-(-length // self.size) for length in lengths]
        padded = [nn.functional.pad(row, (0, size - len(row))) for row, size in zip(rows, sizes, strict=True)]
        gathered = torch.stack(self.gather(torch.cat(padded)))
        parts = torch.split(gathered, sizes, dim=1)
        return [part.flatten()[:length] for part, length in zip(parts, lengths, strict=True)]


class _ReduceInOrder:
    """A reduce-scatter, as FSDP2 calls one for the gradients of a block, that adds up in the order of micro-batches.

    In round j rank r gives the gradients of micro-batch j R + r. What it returns before the last round of a step
    is nothing of use.
    """

    def __init__(self, num_parts: int) -> None:
        self._num_parts, self._num_added, self._sum = num_parts, 0, TreeSum()

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return memory for one of the two tensors."""
        return torch.empty(size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        """Fill the output with this process's part of the sum."""
        received = torch.empty_like(input_tensor)
        dist.all_to_all_single(received, input_tensor, group=group)
        parts = list(received.view(group.size(), -1))
        if len(parts) % 2:  # it waits for a neighbour, and must not keep all others in memory
            parts[-1] = parts[-1].clone()
        for part in parts:
            self._sum.add([part])
        self._num_added += group.size()
        if self._num_added == self._num_parts:
            (total,) = self._sum.take()
            assert total is not None
            output_tensor.copy_(total)
            self._num_added = 0
