"""The rows of one expert among a layer's weights, wherever this process keeps them."""

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from hmoe.model.moe import MoE


def list_expert_weights(moe: "MoE", i: int) -> list[nn.Parameter]:
    """Return the three matrices in which the rows of expert i are."""
    home = moe if moe.experts is None else moe.experts.find_home(_find_place(moe, i))
    return [home.w_gate, home.w_up, home.w_down]


def slice_expert(
    moe: "MoE", i: int, tensors: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the rows of expert i in tensors laid out as those matrices: (h_i, D), (h_i, D), and (D, h_i)."""
    place = _find_place(moe, i)
    if moe.experts is None:
        gate, up, down = (torch.split(tensor, list(moe.widths))[place] for tensor in tensors)
    else:
        gate, up, down = moe.experts.select_rows(place, tensors)
    return gate, up, down.T


def _find_place(moe: "MoE", i: int) -> int:
    """Return the place of expert i among all, counted from the end where it is negative."""
    place, num_experts = operator.index(i), len(moe.widths)
    if not -num_experts <= place < num_experts:
        raise IndexError(
            f"expert {place}: must be from 0 to {num_experts - 1}, or from -{num_experts} to -1 from the end"
        )
    return place % num_experts
