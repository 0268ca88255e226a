"""What a process holds of the experts of a layer: rows of its weights, and all that computes with them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from hmoe.kernels.streamed import StreamedExperts
from hmoe.model.moe import MoE
from hmoe.parallel.trip import PartTable, Trip, join_ranges
from hmoe.specs.placement import Placement

WEIGHTS = ("w_gate", "w_up", "w_down")
GradientSink = Callable[[Sequence[torch.Tensor]], None]


class ExpertRows(nn.Module):
    """Rows of a layer's three weight matrices that lie in this process.

    Attributes:
        rows: which rows of the whole matrices (F, D), in this order.
        source: gives and takes experts that are not all in the device's memory (`hmoe.parallel.offload`), or None.
    """

    source: StreamedExperts | None = None
    w_gate: nn.Parameter
    w_up: nn.Parameter
    w_down: nn.Parameter

    def __init__(
        self, rows: Sequence[range], weights: Sequence[torch.Tensor], requires_grad: Sequence[bool]
    ) -> None:
        super().__init__()
        self.rows = list(rows)
        for name, weight, flag in zip(WEIGHTS, weights, requires_grad, strict=True):
            self.register_parameter(name, nn.Parameter(weight, requires_grad=flag))

    @classmethod
    def cut(cls, moe: MoE, rows: Sequence[range]) -> "ExpertRows":
        """Return rows of a layer that has them all."""
        own, wholes = [], (moe.w_gate, moe.w_up, moe.w_down)
        for whole in wholes:
            cut = [whole.detach()[each.start : each.stop] for each in rows]
            own.append(torch.cat(cut) if cut else whole.detach()[:0].clone())
        return cls(rows, own, [whole.requires_grad for whole in wholes])

    def forward(self, compute: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
        """Return what a function makes of the three matrices and some tensors.

        FSDP2's hooks gather the matrices for this call, where several processes hold the same experts.
        """
        local = (getattr(self, name) for name in WEIGHTS)
        return compute([w.to_local() if isinstance(w, DTensor) else w for w in local], *tensors)


class HeldExperts(NamedTuple):
    """The experts of a layer as this process has them.

    Attributes:
        placement: of all of them.
        table: of its parts.
        group: the processes among which they are placed.
        local, replicas: rows that lie here alone, and those that every process has.
        sink: takes the gradients of the local rows in exact mode, for each process's tokens in their order; None: they
            are added up in a fixed tree and left to autograd.
    """

    placement: Placement
    table: PartTable
    group: dist.ProcessGroup
    local: ExpertRows
    replicas: ExpertRows | None
    sink: GradientSink | None


def find_replica_pairs(placement: Placement, trip: Trip, device: torch.device) -> torch.Tensor:
    """Return the places of the pairs, in the routing, whose experts every process has."""
    experts = placement.everywhere
    return join_ranges([trip.begins[i] for i in experts], [trip.counts[i] for i in experts], device)
