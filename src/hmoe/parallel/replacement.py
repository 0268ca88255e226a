"""Experts that move to other processes during training: their weights and moments, row by row, as they are."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from hmoe.errors import ConfigError
from hmoe.parallel.dispatch import DispatchedExperts
from hmoe.parallel.exchange import Splits, exchange_rows
from hmoe.parallel.expert_parallel import list_dispatched, make_local
from hmoe.parallel.expert_rows import WEIGHTS, ExpertRows
from hmoe.parallel.kept_rows import KeptRows, join_rows
from hmoe.specs.placement import Placement

GatherValues = Callable[[Any], list[Any]]


@torch.no_grad()
def move_experts(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    placements: Sequence[Placement],
    gather_values: GatherValues,
) -> int:
    """Let experts live where new placements say, and return the bytes that this process sent.

    Weights and moments keep their bits. Parameters are others afterwards, in the model and in the optimiser: who
    adopted the model must do so again. Experts that every process has stay so. Experts that several processes share by
    FSDP2 cannot move while it lasts: its engine knows only the modules that it began with.

    Args:
        model: that `parallelize` shared with its experts placed; all gradients must be gone.
        optimizer: of its parameters.
        placements: one for each layer with experts.
        gather_values: returns a JSON value of every process.

    Raises:
        ConfigError: for placements that do not fit, gradients that are still there, or experts that cannot move.
    """
    layers = list(list_dispatched(model))
    _check_move(layers, placements, optimizer)
    num_bytes = 0
    for experts, placement in zip(layers, placements, strict=True):
        if placement != experts.placement:
            num_bytes += _move_layer(experts, placement, optimizer, gather_values)
    return num_bytes


def _check_move(
    layers: Sequence[DispatchedExperts], placements: Sequence[Placement], optimizer: torch.optim.Optimizer
) -> None:
    """Raise ConfigError for what cannot move, before anything has moved."""
    before = [experts.placement for experts in layers]
    if [(p.widths, p.num_ranks, p.everywhere) for p in placements] != [
        (p.widths, p.num_ranks, p.everywhere) for p in before
    ]:
        raise ConfigError(
            "move_experts: placements are of other layers, processes or replicas than those that the model has"
        )
    # By the placements alone, so that all processes raise it.
    if any(each.is_shared or dist.get_world_size(each.group) != dist.get_world_size() for each in layers):
        raise ConfigError(
            "move_experts: experts that several processes share by FSDP2 cannot move; load a checkpoint instead"
        )
    for experts in layers:
        for name in WEIGHTS:
            weight = getattr(experts.local, name)
            if weight.grad is not None:
                raise ConfigError(
                    "move_experts: there are gradients; step, or drop them, before experts move"
                )
            for moment, value in optimizer.state.get(weight, {}).items():
                if isinstance(value, torch.Tensor) and value.ndim and value.shape != weight.shape:
                    raise ConfigError(f"move_experts: moment {moment} has no row for each row of the weights")


def _move_layer(
    experts: DispatchedExperts,
    placement: Placement,
    optimizer: torch.optim.Optimizer,
    gather_values: GatherValues,
) -> int:
    old = experts.local
    num_rows = sum(placement.widths)
    old_rows = gather_values(_list_own(old, num_rows))
    new = _make_rows(experts, placement)
    new_rows = gather_values(_list_own(new, num_rows))
    move = _Move(old_rows, new_rows, num_rows)
    num_bytes = 0
    for name in WEIGHTS:
        before, after = getattr(old, name), getattr(new, name)
        moments = {
            moment: value
            for moment, value in optimizer.state.get(before, {}).items()
            if isinstance(value, DTensor)
        }
        tensors = [before.detach(), *moments.values()]
        rows, sent = move.exchange(torch.stack([tensor.to_local() for tensor in tensors], dim=1))
        num_bytes += sent
        weight, *others = rows.unbind(1)
        after.to_local().copy_(weight)
        state = dict(optimizer.state.pop(before, {}))
        for moment, value in zip(moments, others, strict=True):
            state[moment] = DTensor.from_local(
                value.contiguous(), after.device_mesh, after.placements, run_check=False,
                shape=after.shape, stride=after.stride(),
            )  # fmt: skip
        _replace_parameter(optimizer, before, after, state)
    experts.local = new
    experts.take_placement(placement)
    return num_bytes


def _make_rows(experts: DispatchedExperts, placement: Placement) -> ExpertRows:
    """Return rows of a placement, shared as those before, with any values."""
    old, rows = experts.local, placement.list_rows(experts.rank)
    like = old.w_gate.to_local() if isinstance(old.w_gate, DTensor) else old.w_gate
    shape = (sum(map(len, rows)), *like.shape[1:])
    flags = [getattr(old, name).requires_grad for name in WEIGHTS]
    new = ExpertRows(rows, [like.new_empty(shape) for _ in WEIGHTS], flags)
    new.train(old.training)
    assert isinstance(old.w_gate, DTensor)
    make_local(new, old.w_gate.device_mesh)
    return new


def _list_own(rows: ExpertRows, num_rows: int) -> list[list[int]]:
    """Return begin and end of the rows of the whole matrix that this process has."""
    kept = KeptRows("", rows.w_gate, [num_rows], rows.rows)
    return [[each.start, each.stop] for each in kept.list_own()]


class _Move:
    """Who sends which rows to whom, in the order in which they will be held."""

    def __init__(
        self,
        old_rows: Sequence[Sequence[Sequence[int]]],
        new_rows: Sequence[Sequence[Sequence[int]]],
        num_rows: int,
    ) -> None:
        rank = dist.get_rank()
        olds, news = (
            [join_rows([range(*pair) for pair in ranges]) for ranges in of_all]
            for of_all in (old_rows, new_rows)
        )
        owner = torch.full((num_rows,), -1)
        for each in reversed(range(len(olds))):  # of several that have a row the first sends it
            owner[olds[each]] = each
        place = torch.full((num_rows,), -1)
        place[olds[rank]] = torch.arange(len(olds[rank]))
        wanted = [rows[owner[rows] == rank] for rows in news]
        self._sent = place[torch.cat(wanted)]
        sources = owner[news[rank]]
        self._order = torch.argsort(torch.argsort(sources, stable=True))
        self._splits = Splits(
            [len(rows) for rows in wanted], [int((sources == each).sum()) for each in range(len(olds))]
        )
        self._rank = rank

    def exchange(self, rows: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Return this process's new rows, and the bytes that it sent to others."""
        device = rows.device
        arrived = exchange_rows(
            rows[self._sent.to(device)], self._splits, dist.distributed_c10d._get_default_group()
        )
        num_sent = sum(self._splits.sent) - self._splits.sent[self._rank]
        return arrived[self._order.to(device)], num_sent * rows[:1].nbytes if len(rows) else 0


def _replace_parameter(
    optimizer: torch.optim.Optimizer, before: nn.Parameter, after: nn.Parameter, state: dict[str, Any]
) -> None:
    """Let an optimiser go on with another parameter in the place of one."""
    for group in optimizer.param_groups:
        group["params"] = [after if parameter is before else parameter for parameter in group["params"]]
    if state:
        optimizer.state[after] = state
