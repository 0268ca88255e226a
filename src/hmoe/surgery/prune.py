"""Which experts of a trained layer a smaller one keeps, and the router that it keeps them with (Lu et al. 2024, 5.8)."""

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from hmoe.errors import ConfigError
from hmoe.kernels import expert_ffn
from hmoe.model.moe import MoE
from hmoe.model.routing import Routing

if TYPE_CHECKING:
    pass

_MOST_SUBSETS = 2000  # of experts that are tried one by one


@torch.no_grad()
def write_router(new: MoE, old: MoE, order: Sequence[int]) -> None:
    """Give a layer the router of another one, of which it has these experts in this order.

    Zero-computation experts come after them; either all of them stay or none (`check_parts`).
    """
    rows = [*order, *range(len(old.widths), len(old.widths) + len(new.routed_widths) - len(new.widths))]
    new.router.weight.copy_(old.router.weight[rows])
    if new.router.bias_E is not None and old.router.bias_E is not None:
        new.router.bias_E.copy_(old.router.bias_E[rows])
    if new.hyper is not None and old.hyper is not None:
        new.hyper.embedding.copy_(old.hyper.embedding[rows])


def choose_experts(new: MoE, old: MoE, mass: Sequence[float] | None, x_TD: torch.Tensor | None) -> list[int]:
    """Experts of the old layer for the new one's, the least important first, as widths ascend.

    Of fewer, those whose layer is nearest to the whole one on the inputs, routed by the new layer's router as it will be written;
    the most important ones, if there are too many subsets to try.

    Args:
        new: its router is left as the last subset that was tried needs it.
        old: the trained layer.
        mass: importance of each old expert; None: not measured.
        x_TD: inputs; None: not measured.

    Raises:
        ConfigError: for fewer experts without a measurement.
    """
    experts, count = range(len(old.widths)), len(new.widths)
    if mass is None or x_TD is None:
        if count < len(old.widths):
            raise ConfigError("fewer experts: which ones to keep is measured on a text; give --text")
        return sorted(experts, key=lambda i: (old.widths[i], i))
    by_mass = sorted(experts, key=lambda i: (mass[i], i))
    if count == len(old.widths) or math.comb(len(old.widths), count) > _MOST_SUBSETS:
        return _arrange(by_mass[len(by_mass) - count :], new.widths)
    whole_TD = _mixture(old, old, old.router(x_TD), x_TD, experts)

    def error(order: Sequence[int]) -> float:
        write_router(new, old, order)
        return float((_mixture(new, old, new.router(x_TD), x_TD, order) - whole_TD).norm())

    place = {expert: i for i, expert in enumerate(by_mass)}
    subsets = (sorted(subset, key=place.__getitem__) for subset in itertools.combinations(experts, count))
    return min((_arrange(subset, new.widths) for subset in subsets), key=error)


def _arrange(order: Sequence[int], widths: Sequence[int]) -> list[int]:
    """Experts from the least important one to their places, as widths ascend; those of one width stay in their old order, so that
    groups and ranks, which go by it, change as little as may be."""
    arranged = list(order)
    for width in set(widths):
        places = [i for i, other in enumerate(widths) if other == width]
        for i, expert in zip(places, sorted(arranged[i] for i in places), strict=True):
            arranged[i] = expert
    return arranged


def _mixture(layer: MoE, old: MoE, routing: Routing, x_TD: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
    """What a layer's routed and zero-computation experts give, its experts being these of the old layer."""
    used = int(routing.num_tokens_E[: len(order)].sum())
    home_N = torch.tensor(list(order), device=x_TD.device)[routing.expert_N[:used]]
    by_home_N = torch.argsort(home_N, stable=True)
    token_N, gate_N = (part[:used][by_home_N] for part in (routing.token_N, routing.gate_N))
    counts_E = torch.bincount(home_N, minlength=len(old.widths))
    y_TD = expert_ffn(x_TD, token_N, gate_N, counts_E, old.w_gate, old.w_up, old.w_down, old.widths)
    return y_TD if layer.zero is None else y_TD + layer.zero(x_TD, routing)
