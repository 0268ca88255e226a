"""Which experts of a trained layer a smaller layer keeps, and with which router (Lu et al. 2024, 5.8)."""

import itertools
import math
from collections.abc import Sequence

import torch

from hmoe.errors import ConfigError
from hmoe.kernels import expert_ffn
from hmoe.model.moe import MoE
from hmoe.model.routing import Routing

_MOST_SUBSETS = 2000  # subsets of experts that are tried one by one


@torch.no_grad()
def write_router(new: MoE, old: MoE, order: Sequence[int]) -> None:
    """Give a layer the router of another layer, and its experts' embeddings of HyperExperts.

    Args:
        new: its router is written.
        old: its router is read.
        order: the old experts that are the new layer's, in the new layer's order.
    """
    # Zero-computation experts come after the others, and either all of them stay or none (`check_extras`).
    rows = [*order, *range(len(old.widths), len(old.widths) + len(new.routed_widths) - len(new.widths))]
    new.router.weight.copy_(old.router.weight[rows])
    if new.router.bias_E is not None and old.router.bias_E is not None:
        new.router.bias_E.copy_(old.router.bias_E[rows])
    if new.hyper is not None and old.hyper is not None:
        new.hyper.embedding.copy_(old.hyper.embedding[rows])


def choose_experts(new: MoE, old: MoE, mass: Sequence[float] | None, x_TD: torch.Tensor | None) -> list[int]:
    """Return which expert of the old layer becomes each expert of the new one.

    As widths ascend, the least important expert comes first. If the new layer has fewer experts, those are
    kept whose layer is nearest to the whole one on the inputs (Lu et al. 2024), routed by the new router as
    it will be written. If there are too many subsets to try, the most important experts are kept.

    Args:
        new: the layer to be written. Its router is overwritten while subsets are tried.
        old: the trained layer.
        mass: importance of each old expert, all its units together; None: not measured.
        x_TD: inputs of the old layer; None: not measured.

    Raises:
        ConfigError: for fewer experts without a measurement.
    """
    experts, count = range(len(old.widths)), len(new.widths)
    if mass is None or x_TD is None:
        if count < len(old.widths):
            raise ConfigError(
                "fewer experts: which ones to keep is measured on a text; give `inputs`", argument="inputs"
            )
        return sorted(experts, key=lambda i: (old.widths[i], i))
    by_mass = sorted(experts, key=lambda i: (mass[i], i))
    if count == len(old.widths) or math.comb(len(old.widths), count) > _MOST_SUBSETS:
        return _arrange(by_mass[len(by_mass) - count :], new.widths)
    whole_TD = _mix_experts(old, old, old.router(x_TD), x_TD, experts)

    def distance(order: Sequence[int]) -> float:
        write_router(new, old, order)
        return float((_mix_experts(new, old, new.router(x_TD), x_TD, order) - whole_TD).norm())

    # Whole subsets are tried, since what an expert is worth depends on the others that stay.
    rank = {expert: i for i, expert in enumerate(by_mass)}
    subsets = (sorted(subset, key=rank.__getitem__) for subset in itertools.combinations(experts, count))
    return min((_arrange(subset, new.widths) for subset in subsets), key=distance)


def _arrange(order: Sequence[int], widths: Sequence[int]) -> list[int]:
    """Return experts, given from the least important one on, with those of equal width in their old order.

    Groups and ranks of experts go by their order, so they change as little as may be.
    """
    arranged = list(order)
    for width in set(widths):
        places = [i for i, other in enumerate(widths) if other == width]
        for i, expert in zip(places, sorted(arranged[i] for i in places), strict=True):
            arranged[i] = expert
    return arranged


def _mix_experts(
    layer: MoE, old: MoE, routing: Routing, x_TD: torch.Tensor, order: Sequence[int]
) -> torch.Tensor:
    """Return what a layer gives if its expert i is the old layer's expert `order[i]`; without shared experts.

    The new experts are not written yet, so that their pairs are computed with the old layer's weights.
    """
    # Pairs are sorted by expert, and zero-computation experts, which have no weights, come last.
    num_computed = int(routing.num_tokens_E[: len(order)].sum())
    origin_N = torch.tensor(list(order), device=x_TD.device)[routing.expert_N[:num_computed]]
    # The kernel wants pairs sorted by the expert whose weights they read.
    by_origin_N = torch.argsort(origin_N, stable=True)
    token_N, gate_N = (pairs[:num_computed][by_origin_N] for pairs in (routing.token_N, routing.gate_N))
    num_tokens_E = torch.bincount(origin_N, minlength=len(old.widths))
    y_TD = expert_ffn(x_TD, token_N, gate_N, num_tokens_E, old.w_gate, old.w_up, old.w_down, old.widths)
    return y_TD if layer.zero is None else y_TD + layer.zero(x_TD, routing)
