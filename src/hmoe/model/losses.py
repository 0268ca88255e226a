"""Auxiliary losses of one MoE layer. The trainer takes their mean over layers, then multiplies by the coefficient.

The small functions take numbers that may already be reduced over devices; those named in `hmoe.*` are their local form. All take
tensors with further axes in front too, layers for example, and then give a loss for each.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from hmoe.errors import ConfigError
from hmoe.model.routing import Routing
from hmoe.model.waiting import constant, would_wait
from hmoe.specs.model import MoESpec


def penalty(share_E: torch.Tensor, prob_E: torch.Tensor, weight_E: torch.Tensor | float = 1.0) -> torch.Tensor:
    """E x sum_i share_i weight_i prob_i: eq 3 with weight 1, eq 4 with the experts' relative widths."""
    return prob_E.shape[-1] * (share_E * weight_E * prob_E).sum(-1)


def shares(routing: Routing) -> tuple[torch.Tensor, torch.Tensor]:
    """(T_i, P_i): share of tokens that selected expert i, not divided by k, and its mean probability.

    A selection counts whether or not a capacity then refused it.
    """
    num_tokens = max(routing.probs_TE.shape[-2], 1)  # no tokens: shares, probabilities and losses are 0
    return routing.load_E.to(routing.probs_TE.dtype) / num_tokens, routing.probs_TE.sum(-2) / num_tokens


def load_balance(routing: Routing, weights: Sequence[float] | None = None) -> torch.Tensor:
    """Load-balancing loss E sum_i T_i P_i (HMoE eq 3); uniform routing gives the mean number of experts per token.

    `weights` of the experts multiply their terms: MoE++ weighs zero-computation experts less.
    """
    share_E, prob_E = shares(routing)
    return penalty(share_E, prob_E, 1.0 if weights is None else constant(tuple(weights), prob_E.dtype, prob_E.device))


def parameter_penalty(routing: Routing, widths: Sequence[int], norm: str = "mean") -> torch.Tensor:
    """Parameter-penalty loss E sum_i T_i w_i P_i with w_i = h_i / mean(h) (HMoE eq 4).

    The paper prints w_i = h_i, which contradicts its statement that equal widths give the load-balancing loss; with
    `mean` they do, exactly. `max` divides by the largest width, `raw` is as printed.

    Raises:
        ConfigError: for another norm, or if there is not one width per expert.
    """
    if len(widths) != routing.probs_TE.shape[-1]:
        raise ConfigError(f"parameter_penalty: {len(widths)} widths for {routing.probs_TE.shape[-1]} experts")
    computing = sum(1 for width in widths if width)  # zero-computation experts have width 0 and cost nothing
    scales = {"mean": sum(widths) / computing, "max": max(widths), "raw": 1}
    if norm not in scales:
        raise ConfigError(f"penalty norm = {norm!r}, must be one of mean, max, raw")
    share_E, prob_E = shares(routing)
    return penalty(share_E, prob_E, constant(tuple(widths), prob_E.dtype, prob_E.device) / scales[norm])


def router_entropy(routing: Routing, scale: str = "experts") -> torch.Tensor:
    """Router-entropy loss -E mean_t sum_i P log P (HMoE eq 5), which sharpens the router when minimised.

    The printed formula lacks the minus sign and would make the router uniform. `scale="one"` leaves out the factor E.

    Raises:
        ConfigError: for another scale.
    """
    scales = {"experts": routing.logits_TE.shape[-1], "one": 1}
    if scale not in scales:
        raise ConfigError(f"entropy scale = {scale!r}, must be one of experts, one")
    log_probs_TE = torch.log_softmax(routing.logits_TE, dim=-1)  # P log P through log_softmax is 0 at P = 0, not NaN
    return -scales[scale] * (log_probs_TE.exp() * log_probs_TE).sum((-2, -1)) / max(log_probs_TE.shape[-2], 1)


def router_z(routing: Routing) -> torch.Tensor:
    """Router z-loss mean_t logsumexp(z_t)^2 (ST-MoE), which keeps router logits small."""
    return torch.logsumexp(routing.logits_TE, dim=-1).square().sum(-1) / max(routing.logits_TE.shape[-2], 1)


def auxiliary(routings: Sequence[Routing], moe: MoESpec | None) -> dict[str, torch.Tensor]:
    """Every auxiliary loss, mean over layers; those with coefficient 0 are still worth watching.

    On a GPU all layers at once: the numbers are small, and every launch costs as much as a large one.
    """
    if moe is None:
        return {}
    if would_wait(routings[0].probs_TE):
        routings = [_stack(routings)]
    widths, weights = moe.routed_widths, None
    if moe.zero is not None and moe.zero.balance != 1:
        weights = [1.0 if width else moe.zero.balance for width in widths]
    per_layer = {
        "load_balance": [load_balance(r, weights) for r in routings],
        "parameter_penalty": [parameter_penalty(r, widths, moe.penalty_norm) for r in routings],
        "router_entropy": [router_entropy(r, moe.entropy_scale) for r in routings],
        "router_z": [router_z(r) for r in routings],
    }
    return {name: torch.stack(values).mean() for name, values in per_layer.items()}


def _stack(routings: Sequence[Routing]) -> Routing:
    """What losses read of several layers, with one more axis in front."""
    logits, probs, load = (
        torch.stack([getattr(routing, name) for routing in routings]) for name in ("logits_TE", "probs_TE", "load_E")
    )
    return replace(routings[0], logits_TE=logits, probs_TE=probs, asked_E=load)


def weighted(terms: dict[str, torch.Tensor], moe: MoESpec | None) -> torch.Tensor | float:
    """Sum of the auxiliary losses among `terms`, each times its coefficient."""
    total: torch.Tensor | float = 0.0
    for name in ("load_balance", "parameter_penalty", "router_entropy", "router_z"):
        coefficient = getattr(moe, name, 0.0)
        if coefficient:
            total = total + coefficient * terms[name]
    return total
