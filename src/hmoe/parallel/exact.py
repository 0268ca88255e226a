"""Training steps that have the same bits with any number of processes: every sum has an order of its own."""

from collections.abc import Callable, Container, Iterable, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from hmoe.errors import ConfigError
from hmoe.parallel.dispatch import DispatchedExperts
from hmoe.parallel.expert_rows import WEIGHTS
from hmoe.parallel.fixed_order import TreeSum, measure_norm, sum_row_squares
from hmoe.parallel.kept_rows import KeptRows, join_rows, list_kept_rows
from hmoe.parallel.ranks import Ranks


class ExactRanks(Ranks):
    """Processes whose results do not depend on how many they are, nor on where experts are placed among them.

    Each micro-batch's gradients are sent to those who keep them by themselves, and added up there by `TreeSum` in
    the order of the micro-batches. The price is communication after every micro-batch instead of the last one.
    """

    exact = True

    def adopt(self, model: nn.Module, num_parts: int, gathered: Iterable[nn.Module] = ()) -> None:
        """Let a model, which `parallelize` has shared with gradients="sum", add up its gradients in order."""
        super().adopt(model, num_parts, gathered)
        # While weights are gathered a model's parameters are others than those that get the gradients.
        self._parameters = list(model.parameters())
        self._layout = RowLayout(list_kept_rows(model), self.gather_values)
        self._sums: dict[DispatchedExperts, TreeSum] = {}
        # Whose gradients come as sums of a whole group, whose processes have neighbouring micro-batches.
        leaves_at_once: dict[nn.Module, int] = {}
        for experts in self._experts:
            if experts.placement.num_cuts:
                raise ConfigError(
                    "placement: an expert is cut; exact results need whole ones, as the sum over its hidden units "
                    "would be another one"
                )
            experts.exact = True
            if experts.is_shared:
                leaves_at_once[experts.local] = dist.get_world_size(experts.group)
            else:
                self._sums[experts] = TreeSum()
                experts.sink = self._sums[experts].add
        for module in model.modules():
            if isinstance(module, FSDPModule):
                reduce = _ReduceInOrder(num_parts // leaves_at_once.get(module, 1))
                module.set_custom_reduce_scatter(reduce)  # type: ignore[arg-type]

    def begin_part(self, model: nn.Module, is_last: bool) -> None:
        """Drop what the part before left as gradients: only those after the last are sums of all."""
        for parameter in self._parameters:
            parameter.grad = None
        self._keep_gathered(is_last)

    def end_parts(self, model: nn.Module) -> None:
        """Leave the sums of gradients with the experts that this process alone holds; the engine has the others'."""
        for experts, total in self._sums.items():
            for name, gradient in zip(WEIGHTS, total.take(), strict=True):
                parameter = getattr(experts.local, name)
                if gradient is None or not parameter.requires_grad:
                    continue
                parameter.grad = DTensor.from_local(
                    gradient, parameter.device_mesh, parameter.placements, run_check=False
                )

    def norm(self, gradients: Iterable[torch.Tensor]) -> torch.Tensor:
        """Return the norm of all gradients as a plain scalar, the same bits as one process has."""
        given = {id(gradient) for gradient in gradients}
        names: set[str] = set()
        own: list[torch.Tensor | None] = []
        dtype = torch.float32
        for kept in self._layout.kept:
            gradient = kept.parameter.grad
            if gradient is None or id(gradient) not in given:
                own.append(None)
                continue
            names.add(kept.name)
            dtype = gradient.dtype
            own.append(sum_row_squares(gradient.to_local() if isinstance(gradient, DTensor) else gradient))
        return measure_norm(self._layout.gather_rows(own, names, self.gather), dtype)


class RowLayout:
    """Which of all rows, as one process would list them, each process has.

    Attributes:
        kept: parameters that have gradients.
    """

    def __init__(self, kept: Sequence[KeptRows], gather_values: Callable[[Any], list[Any]]) -> None:
        self.kept = [each for each in kept if each.parameter.requires_grad]
        self._lengths = {each.name: each.shape[0] for each in self.kept}
        firsts = dict(zip(self._lengths, accumulate(self._lengths.values(), initial=0), strict=False))
        own = [
            [[firsts[each.name] + rows.start, firsts[each.name] + rows.stop] for rows in each.list_own()]
            for each in self.kept
        ]
        self._sizes = [sum(stop - start for start, stop in ranges) for ranges in own]
        self._places = [
            join_rows([range(*pair) for ranges in ranges_of_all for pair in ranges])
            for ranges_of_all in gather_values(own)
        ]

    def gather_rows(
        self,
        own: Sequence[torch.Tensor | None],
        names: Container[str],
        gather: Callable[[torch.Tensor], list[torch.Tensor]],
    ) -> list[torch.Tensor]:
        """Return the values of all rows of some tensors, given this process's; one exchange for all."""
        known = [values for values in own if values is not None]
        if not known:
            return []
        device = known[0].device
        filled = [
            torch.zeros(size, dtype=torch.float64, device=device) if values is None else values
            for values, size in zip(own, self._sizes, strict=True)
        ]
        most = max(len(places) for places in self._places)
        vector = torch.cat(filled)
        gathered = gather(nn.functional.pad(vector, (0, most - len(vector))))
        whole = vector.new_zeros(sum(self._lengths.values()))
        for places, values in zip(self._places, gathered, strict=True):
            whole[places.to(device)] = values[: len(places)]
        parts = torch.split(whole, list(self._lengths.values()))
        return [part for name, part in zip(self._lengths, parts, strict=True) if name in names]


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
