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

    A copy of the down projections lives while the optimizer steps. It is not made for experts of equal width, whose
    scale is 1.
    """
    layers = [m for m in model.modules() if isinstance(m, MoE) and len(set(m.widths)) > 1]
    scales = [_compute_scales(layer) for layer in layers]
    before: list[torch.Tensor] = []

    def keep(*_: Any) -> None:
        before.extend(layer.w_down.detach().clone() for layer in layers)

    @torch.no_grad()
    def interpolate(*_: Any) -> None:
        for layer, old_FD, scale_F1 in zip(layers, before, scales, strict=True):
            # Exact where nothing moved: old + scale x 0.
            layer.w_down.copy_(torch.lerp(old_FD, layer.w_down, scale_F1))
        before.clear()

    optimizer.register_step_pre_hook(keep)
    optimizer.register_step_post_hook(interpolate)


def _compute_scales(layer: MoE) -> torch.Tensor:
    """Return mean(h) / h_i for each row of the down projection, in one column."""
    mean = sum(layer.widths) / len(layer.widths)
    scales = [mean / width for width in layer.widths for _ in range(width)]
    return torch.tensor(scales, dtype=layer.w_down.dtype, device=layer.w_down.device)[:, None]
