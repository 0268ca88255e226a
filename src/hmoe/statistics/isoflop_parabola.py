"""A parabola of loss in log N for each budget, as isoFLOP figures show it (Hoffmann et al. 2022, approach 2).

Its optimum is biased even without noise where sizes are far apart, not centred on the optimum, or exponents of size
and tokens differ (Czech et al. 2026, arXiv 2603.22339): `hmoe.statistics.loss_law` has none of this.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hmoe.statistics.loss_law import LossPoint, Values, collect_columns

FEWEST_SIZES = 3


@dataclass(frozen=True)
class BudgetParabola:
    """The parabola of one budget.

    Attributes:
        budget: FLOPs that were aimed at.
        flops: mean of the FLOPs that the points spent; nothing is corrected for their differences.
        flops_spread: largest minus least FLOPs by their mean.
        num_points: points.
        num_sizes: names of sizes among them.
        best_size: N of the size with the least mean loss, which no curve is needed for.
        best_loss: that mean loss.
        curvature: second derivative of the loss by log N; None with too few sizes.
        optimal_size: N at the bottom; None where none is claimed.
        minimum_loss: loss there; None likewise.
        reason: why no optimum is claimed; None where one is.
    """

    budget: float
    flops: float
    flops_spread: float
    num_points: int
    num_sizes: int
    best_size: float
    best_loss: float
    curvature: float | None
    optimal_size: float | None
    minimum_loss: float | None
    reason: str | None


@dataclass(frozen=True)
class PowerLaw:
    """y = scale * FLOPs ^ exponent.

    Attributes:
        scale: y for one FLOP.
        exponent: of FLOPs.
        num_points: budgets that it goes through; two leave no residual.
    """

    scale: float
    exponent: float
    num_points: int

    def predict(self, flops: float) -> float:
        """Return y for so many FLOPs."""
        return float(self.scale * flops**self.exponent)


def fit_parabolas(points: Sequence[LossPoint]) -> tuple[BudgetParabola, ...]:
    """Fit loss = a + b log N + c (log N)^2 to the points of each budget of a family, smallest budget first."""
    budgets = sorted({point.budget for point in points})
    return tuple(_fit_parabola([point for point in points if point.budget == budget]) for budget in budgets)


def fit_optimum_power_law(parabolas: Sequence[BudgetParabola]) -> PowerLaw | None:
    """Fit the optimal sizes as a power of FLOPs; None if fewer than two budgets have an optimum."""
    pairs = [(each.flops, each.optimal_size) for each in parabolas if each.optimal_size is not None]
    if len(pairs) < 2:
        return None
    logs = np.log(np.array(pairs))
    middle = logs.mean(0)
    flops, sizes = (logs - middle).T
    exponent = float(flops @ sizes / (flops @ flops))
    return PowerLaw(float(np.exp(middle[1] - exponent * middle[0])), exponent, len(pairs))


def _fit_parabola(points: Sequence[LossPoint]) -> BudgetParabola:
    sizes, _, losses = collect_columns(points)
    flops = np.array([point.flops for point in points])
    names = sorted({point.size for point in points})
    groups = [np.array([point.size == name for point in points]) for name in names]
    best_loss, best = min((float(losses[group].mean()), k) for k, group in enumerate(groups))
    curvature = optimum = minimum = None
    reason: str | None = f"{len(names)} sizes, a parabola needs {FEWEST_SIZES}"
    if len(names) >= FEWEST_SIZES:
        curvature, optimum, minimum, reason = _find_bottom(np.log(sizes), losses, groups)
    return BudgetParabola(
        budget=points[0].budget,
        flops=float(flops.mean()),
        flops_spread=float(np.ptp(flops) / flops.mean()),
        num_points=len(points),
        num_sizes=len(names),
        best_size=float(np.exp(np.log(sizes[groups[best]]).mean())),
        best_loss=best_loss,
        curvature=curvature,
        optimal_size=optimum,
        minimum_loss=minimum,
        reason=reason,
    )


def _find_bottom(
    logs: Values, losses: Values, groups: Sequence[npt.NDArray[np.bool_]]
) -> tuple[float, float | None, float | None, str | None]:
    """Return curvature, optimal N and loss there, or why there is no optimum."""
    middle = logs.mean()
    square, slope, level = (float(c) for c in np.polyfit(logs - middle, losses, 2))
    if square <= 0:
        return 2 * square, None, None, "the loss does not curve upwards"
    bottom = -slope / (2 * square)
    means = [float(logs[group].mean()) for group in groups]
    size = float(np.exp(middle + bottom))
    if middle + bottom < min(means):
        return 2 * square, None, None, f"the bottom, N = {size:.3g}, is below the smallest size"
    if middle + bottom > max(means):
        return 2 * square, None, None, f"the bottom, N = {size:.3g}, is above the largest size"
    return 2 * square, size, level - slope**2 / (4 * square), None
