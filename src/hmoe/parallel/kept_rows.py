"""Which rows of which tensor of the whole model each parameter of this process holds."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from hmoe.parallel.expert_parallel import list_dispatched
from hmoe.parallel.expert_rows import WEIGHTS


class KeptRows(NamedTuple):
    """A parameter as a part of the whole model.

    Attributes:
        name: of the tensor in a model that one process holds.
        parameter: of this process.
        shape: of the whole tensor.
        rows: those that the parameter holds, in its order, of which this process holds a part if others have the rest;
            None: the tensor is not placed, its rows are those of the parameter.
        is_replica: whether another parameter of this process, or of all others, is of the same tensor.
    """

    name: str
    parameter: nn.Parameter
    shape: list[int]
    rows: Sequence[range] | None = None
    is_replica: bool = False

    def list_own(self) -> list[range]:
        """Return the rows of the whole tensor that this process holds, one range after another."""
        places = (
            find_rows(self.parameter)
            if isinstance(self.parameter, DTensor)
            else range(_count(self.parameter))
        )
        return [places] if self.rows is None else select_ranges(self.rows, places)

    def list_written(self) -> list[range]:
        """Return those that it writes: of processes that all hold a row, one does."""
        if not isinstance(self.parameter, DTensor):
            return []
        written = find_rows(self.parameter)
        for axis, placement in enumerate(self.parameter.placements):
            if not isinstance(placement, Shard):
                written = cut_range(written, self.parameter.device_mesh, axis)
        return [written] if self.rows is None else select_ranges(self.rows, written)


def list_kept_rows(model: nn.Module) -> list[KeptRows]:
    """Return all parameters of a model, shared or placed or neither, as parts of the whole one."""
    placed = {id(kept.parameter): kept for kept in _list_placed(model)}
    return [
        placed.get(id(parameter), KeptRows(name, parameter, list(parameter.shape)))
        for name, parameter in model.named_parameters()
    ]


@torch.no_grad()
def gather_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return all weights of a shared model whole, on the CPU, by their names in a model that one process holds.

    Every process calls it, and has them all.
    """
    weights: dict[str, torch.Tensor] = {}
    for kept in list_kept_rows(model):
        if not isinstance(kept.parameter, DTensor):
            weights[kept.name] = kept.parameter.detach().cpu().clone()
        elif kept.rows is None:
            weights[kept.name] = kept.parameter.full_tensor().cpu()
        else:
            own, written = (join_rows(ranges) for ranges in (kept.list_own(), kept.list_written()))
            is_written = torch.isin(own, written)
            whole = kept.parameter.to_local().new_zeros(kept.shape)
            whole[own[is_written]] = kept.parameter.to_local()[is_written]
            dist.all_reduce(whole)  # each row is of one process, and 0 in all others
            weights[kept.name] = whole.cpu() + weights.get(kept.name, torch.zeros(()))
    return weights


def join_rows(ranges: Sequence[range]) -> torch.Tensor:
    """Return the rows of ranges, one range after another, as integers."""
    return torch.cat([torch.arange(each.start, each.stop) for each in ranges] or [torch.arange(0)])


def _list_placed(model: nn.Module) -> Iterator[KeptRows]:
    names = {module: name for name, module in model.named_modules()}
    for experts in list_dispatched(model):
        layer = names[experts].rpartition(".")[0]
        for weight in WEIGHTS:
            for home in (experts.local, experts.replicas):
                if home is not None:
                    parameter = getattr(home, weight)
                    shape = [sum(experts.placement.widths), *parameter.shape[1:]]
                    yield KeptRows(
                        f"{layer}.{weight}".removeprefix("."),
                        parameter,
                        shape,
                        home.rows,
                        home is experts.replicas,
                    )


def _count(parameter: nn.Parameter) -> int:
    return len(parameter) if parameter.ndim else 1


def find_rows(tensor: DTensor) -> range:
    """Return the rows of a tensor that this process holds, cut as `torch.chunk` cuts them."""
    rows = range(len(tensor))
    for axis, placement in enumerate(tensor.placements):
        if isinstance(placement, Shard):
            rows = cut_range(rows, tensor.device_mesh, axis)
    return rows


def cut_range(rows: range, mesh: DeviceMesh, axis: int) -> range:
    """Return the part of some rows that falls to this process along an axis of a mesh."""
    size = -(-len(rows) // mesh.size(axis))
    start = min(mesh.get_local_rank(axis) * size, len(rows))
    return rows[start : start + size]


def select_ranges(ranges: Sequence[range], places: range) -> list[range]:
    """Return the integers at some places of the list that ranges are, one after another; neighbours are joined."""
    selected: list[range] = []
    first = 0
    for each in ranges:
        part = each[max(places.start - first, 0) : max(places.stop - first, 0)]
        first += len(each)
        if selected and part and selected[-1].stop == part.start:
            part = range(selected.pop().start, part.stop)
        selected += [part] * bool(part)
    return selected
