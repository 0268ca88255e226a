"""What a family's compute is worth in that of another one: efficiency leverage (Tian et al. 2025, arXiv 2507.17702).

The FLOPs that the reference family needs for the loss that a family reaches with C FLOPs, by C; both at their best
sizes by the fitted laws. 1.1 means that the family does with 1.0 what the reference needs 1.1 for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hmoe.errors import ConfigError
from hmoe.statistics.loss_law import (
    FLOPS_PER_TOKEN_AND_SIZE,
    LossLaw,
    LossPoint,
    Values,
    compute_flops_for_loss,
    compute_flops_for_loss_at_size,
    compute_frontier_loss,
    predict_loss,
)
from hmoe.statistics.run_bootstrap import FamilyResamples, PercentileInterval, compute_percentile_interval

_OUTSIDE = 0.02  # relative: so far beyond the points nothing is called extrapolated


@dataclass(frozen=True)
class ComputeCost:
    """What a FLOP of a family takes, measured side by side with the others.

    Attributes:
        seconds_per_flop: mean or median, in any unit of time that is the same for all families.
        relative_error: standard error by that; None if not known, which counts as none.
    """

    seconds_per_flop: float
    relative_error: float | None = None

    def __post_init__(self) -> None:
        if not self.seconds_per_flop > 0:
            raise ConfigError(f"seconds_per_flop = {self.seconds_per_flop}: must be above 0")
        if self.relative_error is not None and not 0 <= self.relative_error < 1:
            raise ConfigError(f"relative_error = {self.relative_error}: must be at least 0 and below 1")


@dataclass(frozen=True)
class FittedFamily:
    """A family whose law could be fitted.

    Attributes:
        points: that it was fitted to.
        law: fitted.
        resamples: of `resample_families`; None for no intervals.
    """

    points: Sequence[LossPoint]
    law: LossLaw
    resamples: FamilyResamples | None = None


@dataclass(frozen=True)
class Leverage:
    """Efficiency leverage at a budget.

    Attributes:
        flops: C that the family spends.
        loss: that it reaches with it, in nats.
        reference_flops: that the reference needs for it; None if it never gets there.
        interval: of reference_flops / C. Where the reference never gets there its value is None; its upper end is
            open (None) where that holds for more of the resamples than the interval leaves out above.
        share_unreached: of the resamples, in which the reference never gets there.
        extrapolations: what of this lies outside the points, in words.
    """

    flops: float
    loss: float
    reference_flops: float | None
    interval: PercentileInterval
    share_unreached: float
    extrapolations: tuple[str, ...]


def compute_leverage(
    family: Values, reference: Values, flops: float, model_size: float | None = None
) -> Values:
    """Return reference FLOPs / FLOPs from coefficients (..., 5): infinite where never reached, NaN without frontier.

    Args:
        family: coefficients of the family's law.
        reference: coefficients of the reference's law.
        flops: C.
        model_size: N of both, in place of the best size of each.
    """
    if model_size is None:
        return compute_flops_for_loss(reference, compute_frontier_loss(family, flops)) / flops
    loss = predict_loss(family, model_size, flops / FLOPS_PER_TOKEN_AND_SIZE / model_size)
    return compute_flops_for_loss_at_size(reference, loss, model_size) / flops


def estimate_leverage(
    family: FittedFamily,
    reference: FittedFamily,
    flops: float,
    model_size: float | None = None,
    confidence: float = 0.95,
) -> Leverage | None:
    """Return the leverage of a family over a reference, with the interval of resamples of the same draws.

    Args:
        family: whose compute is valued.
        reference: in whose compute it is valued.
        flops: C that the family spends.
        model_size: N of both, in place of the best size of each.
        confidence: of the interval.

    Returns:
        None where a law has no frontier, which a fixed size does not need.
    """
    law = family.law
    value = float(compute_leverage(law.coefficients, reference.law.coefficients, flops, model_size))
    if np.isnan(value):
        return None
    optimum = law.optimal_size(flops)
    size = optimum[0] if model_size is None and optimum is not None else model_size
    assert size is not None
    draws = _draw_leverage(family, reference, flops, model_size)
    interval = compute_percentile_interval(value, draws, confidence)
    reference_flops = value * flops if np.isfinite(value) else None
    return Leverage(
        flops=flops,
        loss=float(law.predict(size, flops / FLOPS_PER_TOKEN_AND_SIZE / size)),
        reference_flops=reference_flops,
        interval=interval,
        share_unreached=float(np.isinf(draws).sum() / max(interval.num_used, 1)),
        extrapolations=(
            *_describe_extrapolation("family", family, flops, model_size),
            *_describe_extrapolation("reference", reference, reference_flops, model_size),
        ),
    )


def estimate_leverage_in_seconds(
    family: FittedFamily,
    reference: FittedFamily,
    flops: float,
    costs: tuple[ComputeCost, ComputeCost],
    confidence: float = 0.95,
) -> PercentileInterval:
    """Return the leverage in seconds: that in FLOPs times seconds per FLOP of the reference by the family's.

    The errors of both costs, as of normal logarithms, are drawn anew for each resample, always the same.

    Args:
        family: whose compute is valued.
        reference: in whose compute it is valued.
        flops: C that the family spends.
        costs: of the family and of the reference.
        confidence: of the interval.
    """
    ratio = costs[1].seconds_per_flop / costs[0].seconds_per_flop
    error = math.hypot(*(cost.relative_error or 0.0 for cost in costs))
    value = float(compute_leverage(family.law.coefficients, reference.law.coefficients, flops))
    draws = _draw_leverage(family, reference, flops, None)
    scale = np.exp(error * np.random.default_rng(0).standard_normal(len(draws)))
    return compute_percentile_interval(value * ratio, draws * ratio * scale, confidence)


def _draw_leverage(
    family: FittedFamily, reference: FittedFamily, flops: float, model_size: float | None
) -> Values:
    """Return the leverage of each resample; none without resamples of both."""
    if family.resamples is None or reference.resamples is None:
        return np.empty(0)
    return compute_leverage(
        family.resamples.coefficients, reference.resamples.coefficients, flops, model_size
    )


def _describe_extrapolation(
    name: str, family: FittedFamily, flops: float | None, model_size: float | None
) -> list[str]:
    """Return what of a law at its best size for these FLOPs, or at a given size, lies outside its points, in words."""
    if flops is None:
        return []
    optimum = family.law.optimal_size(flops)
    size = model_size if model_size is not None else optimum[0] if optimum else None
    ranges = {
        "FLOPs": (flops, [point.flops for point in family.points]),
        "size": (size, [point.model_size for point in family.points]),
    }
    words = []
    for what, (value, values) in ranges.items():
        low, high = min(values), max(values)
        if value is not None and not low * (1 - _OUTSIDE) <= value <= high * (1 + _OUTSIDE):
            words.append(f"{what} of the {name}, {value:.3g}, outside the measured {low:.3g} to {high:.3g}")
    return words
