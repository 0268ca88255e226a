"""Auxiliary losses of routers, each a function of `RouterStatistics` and thin for one layer's `Routing`.

Statistics of several layers, with an axis Z in front, give a loss for each; the trainer takes their mean
over layers, then multiplies by the coefficient. Statistics may be reduced over micro-batches and
processes before: losses do not know.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from hmoe.errors import ConfigError
from hmoe.model.routing import Routing
from hmoe.model.statistics import RouterStatistics, measure_router, measure_routers
from hmoe.model.waiting import get_constant
from hmoe.specs.losses import LOSSES, add_loss
from hmoe.specs.model import MoESpec

# Of statistics with an axis Z in front: a loss for each layer.
LossFunction = Callable[[RouterStatistics, MoESpec], torch.Tensor]


def load_balance(routing: Routing, weights: Sequence[float] | None = None) -> torch.Tensor:
    """Return the load-balancing loss E sum_i T_i P_i (HMoE eq 3).

    T_i is the share of tokens that selected expert i, not divided by k, P_i its mean probability. `weights`
    of the experts multiply their terms: MoE++ weighs zero-computation experts less.

    At balance (every T_i = k / E, every P_i = 1 / E) it is k, the experts per token, whatever E is. Where all
    tokens take the same k experts with all of their probability it is E.
    """
    return compute_load_balance(measure_router(routing, logits=False), weights)


def compute_load_balance(
    statistics: RouterStatistics, weights: Sequence[float] | None = None
) -> torch.Tensor:
    """Return the load-balancing loss of `load_balance`, from statistics."""
    if weights is None:
        return _penalise(statistics, 1.0)
    prob_sum = statistics.prob_sum_E
    return _penalise(statistics, get_constant(tuple(weights), prob_sum.dtype, prob_sum.device))


def parameter_penalty(routing: Routing, widths: Sequence[int], norm: str = "mean") -> torch.Tensor:
    """Return the parameter-penalty loss E sum_i T_i w_i P_i with w_i = h_i / mean(h) (HMoE eq 4).

    The paper prints w_i = h_i, which contradicts its statement that equal widths give the load-balancing
    loss; with `mean` they do, exactly. `max` divides by the largest width, `raw` is as printed.

    At balance it is the experts per token k, times mean(h) / max(h) with `max` and mean(h) with `raw`. Below
    that narrow experts are preferred: its minimum is where the router takes the narrowest ones alone.

    Raises:
        ConfigError: for another norm, or if there is not one width per expert.
    """
    return compute_parameter_penalty(measure_router(routing, logits=False), widths, norm)


def compute_parameter_penalty(
    statistics: RouterStatistics, widths: Sequence[int], norm: str = "mean"
) -> torch.Tensor:
    """Return the parameter-penalty loss of `parameter_penalty`, from statistics; raises the same."""
    prob_sum = statistics.prob_sum_E
    if len(widths) != prob_sum.shape[-1]:
        raise ConfigError(f"parameter_penalty: {len(widths)} widths for {prob_sum.shape[-1]} experts")
    # Zero-computation experts have width 0 and cost nothing: the mean is over those that compute.
    computing = sum(1 for width in widths if width)
    scales = {"mean": sum(widths) / computing, "max": max(widths), "raw": 1}
    if norm not in scales:
        raise ConfigError(f"penalty norm = {norm!r}, must be one of mean, max, raw")
    return _penalise(statistics, get_constant(tuple(widths), prob_sum.dtype, prob_sum.device) / scales[norm])


def router_entropy(routing: Routing, scale: str = "experts") -> torch.Tensor:
    """Return the router-entropy loss -E mean_t sum_i P log P (HMoE eq 5): minimised, it sharpens the router.

    The printed formula lacks the minus sign and would make the router uniform.
    `scale="one"` leaves out the factor E.

    A uniform router gives E ln E, ln E with scale "one"; a router that is certain of one expert gives 0.

    Raises:
        ConfigError: for another scale.
    """
    return compute_router_entropy(measure_router(routing), scale)


def compute_router_entropy(statistics: RouterStatistics, scale: str = "experts") -> torch.Tensor:
    """Return the router-entropy loss of `router_entropy`, from statistics; raises the same."""
    scales = {"experts": statistics.prob_sum_E.shape[-1], "one": 1}
    if scale not in scales:
        raise ConfigError(f"entropy scale = {scale!r}, must be one of experts, one")
    assert statistics.entropy_sum is not None
    return scales[scale] * statistics.entropy_sum / statistics.divisor


def router_z(routing: Routing) -> torch.Tensor:
    """Return the router z-loss mean_t logsumexp(z_t)^2 (ST-MoE), which keeps router logits small.

    At logits of 0 it is (ln E)^2; one large logit z gives about z^2.
    """
    return compute_router_z(measure_router(routing))


def compute_router_z(statistics: RouterStatistics) -> torch.Tensor:
    """Return the router z-loss of `router_z`, from statistics."""
    assert statistics.z_sum is not None
    return statistics.z_sum / statistics.divisor


def _penalise(statistics: RouterStatistics, weight_E: torch.Tensor | float) -> torch.Tensor:
    """Return E x sum_i share_i weight_i prob_i: eq 3 with weight 1, eq 4 with relative widths."""
    prob = statistics.prob_E  # perhaps with an axis of layers in front
    # Shares are counts and have no gradient: the router learns through the probabilities of crowded experts.
    return prob.shape[-1] * (statistics.share_E * weight_E * prob).sum(-1)


# By the names of `hmoe.specs.losses.LOSSES`.
LOSS_FUNCTIONS: dict[str, LossFunction] = {
    "load_balance": lambda statistics, moe: compute_load_balance(statistics, moe.balance_weights),
    "parameter_penalty": lambda statistics, moe: compute_parameter_penalty(
        statistics, moe.routed_widths, moe.penalty_norm
    ),
    "router_entropy": lambda statistics, moe: compute_router_entropy(statistics, moe.entropy_scale),
    "router_z": lambda statistics, moe: compute_router_z(statistics),
}


def register_loss(name: str, function: LossFunction, summary: str = "", unequal_only: bool = False) -> None:
    """Add an auxiliary loss, whose coefficient recipes give under `model.moe.losses`.

    It is logged, exported and trained like the built-in ones.

    Args:
        name: what recipes and metrics.jsonl call it.
        function: (statistics, spec of the experts) -> the loss; the statistics have an axis of MoE layers in
            front, and so has what it returns.
        summary: what it is, in a few words.
        unequal_only: whether it is constant where all that the router chooses from is equally wide: such recipes then
            refuse it. Equal families, equal rows of ablations and uniform controls are trained without it.

    Raises:
        ConfigError: for a name that is taken or that a recipe cannot hold.
    """
    if not callable(function):
        raise ConfigError(
            f"register_loss: function = {function!r}, must be a function of RouterStatistics and MoESpec"
        )
    known = LOSS_FUNCTIONS.get(name)
    again = known is not None and _locate(known) == _locate(function)
    add_loss(name, summary, unequal_only, again)
    LOSS_FUNCTIONS[name] = function


def _locate(function: Any) -> tuple[str, str]:
    """Return where a function is defined, which stays the same when its file is run again."""
    return function.__module__, function.__qualname__


def compute_auxiliary_losses(routings: Sequence[Routing], moe: MoESpec | None) -> dict[str, torch.Tensor]:
    """Return every auxiliary loss of one forward pass, mean over layers; a dense model has none."""
    return {} if moe is None else average_losses(measure_routers(routings), moe)


def average_losses(statistics: RouterStatistics, moe: MoESpec) -> dict[str, torch.Tensor]:
    """Return the mean over layers of each built-in loss, and of those that the spec names.

    Built-in ones are worth watching at coefficient 0 too.
    """
    names = [loss.name for loss in LOSSES.values() if loss.built_in or loss.name in moe.losses]
    return {name: LOSS_FUNCTIONS[name](statistics, moe).mean() for name in names}


def sum_weighted_losses(
    terms: dict[str, torch.Tensor],
    moe: MoESpec | None,
) -> torch.Tensor | float:
    """Return the sum of the auxiliary losses among `terms`, each times its coefficient."""
    total: torch.Tensor | float = 0.0
    if moe is None:
        return total
    for name in LOSSES:
        coefficient = moe.get_coefficient(name)
        if coefficient:  # not 0 times the loss: 0 x NaN is NaN
            total = total + coefficient * terms[name]
    return total
