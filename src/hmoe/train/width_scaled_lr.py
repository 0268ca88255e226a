"""A learning rate of each expert's down projection by its own width (Yang et al. 2022, arXiv:2203.03466)."""

from typing import Any

import torch
from torch import nn

from hmoe.model.moe import MoE


def scale_down_projections(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer move w_down of expert i by mean(h) / h_i of its usual update.

    Maximal-update scaling, Adam's column of the source: the learning rate of a matrix is inverse to its fan-in, which
    of w_down is h_i and of w_gate and w_up the model's width, the same for all experts. The whole update is
    scaled, decay too, as another learning rate would. Initial weights follow h_i already
    (`MoE.reset_parameters`).

    A copy of the down projections lives while the optimizer steps (`hmoe.config.memory` counts it). It is not made
    for experts of equal width, whose scale is 1. Where the projections are sharded (FSDP2) each process keeps and
    scales its own rows; as for every optimizer, shard before this is called.
    """
    layers = [m for m in model.modules() if isinstance(m, MoE) and len(set(m.widths)) > 1]
    # The parameters that the optimizer moves, not what the layers hold later: FSDP2 swaps those for whole ones.
    weights = [layer.w_down for layer in layers]
    scales = [_cut_rows(_compute_scales(layer), layer.w_down) for layer in layers]
    before: list[torch.Tensor] = []

    @torch.no_grad()
    def keep(*_: Any) -> None:
        before.extend(_get_local(weight).clone() for weight in weights)

    @torch.no_grad()
    def interpolate(*_: Any) -> None:
        for weight, old_FD, scale_F1 in zip(weights, before, scales, strict=True):
            local_FD = _get_local(weight)
            # Exact where nothing moved: old + scale x 0. Into the copy, so that there is no second one.
            local_FD.copy_(old_FD.lerp_(local_FD, scale_F1))
        before.clear()

    optimizer.register_step_pre_hook(keep)
    optimizer.register_step_post_hook(interpolate)


def _compute_scales(layer: MoE) -> torch.Tensor:
    """Return mean(h) / h_i for each row of the down projection, in one column."""
    mean = sum(layer.widths) / len(layer.widths)
    scales = [mean / width for width in layer.widths for _ in range(width)]
    return torch.tensor(scales, dtype=layer.w_down.dtype, device=layer.w_down.device)[:, None]


def _get_local(weight: torch.Tensor) -> torch.Tensor:
    """Return the part of a weight that this process holds: all of it, unless it is a DTensor."""
    # Asked of the weight itself, for torch.distributed is no part of training by one process.
    return weight.to_local() if hasattr(weight, "to_local") else weight


def _cut_rows(scale_F1: torch.Tensor, weight: Any) -> torch.Tensor:
    """Return the scales of the rows that this process holds, which may be none; a DTensor is cut as by torch.chunk."""
    if not hasattr(weight, "to_local"):
        return scale_F1
    mesh = weight.device_mesh
    for axis, placement in enumerate(weight.placements):
        if placement.is_shard(0):
            num_rows = -(-len(scale_F1) // mesh.size(axis))
            first = num_rows * mesh.get_local_rank(axis)
            scale_F1 = scale_F1[first : first + num_rows]
    return scale_F1
