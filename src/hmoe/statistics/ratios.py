"""Ratios of two sums over independent questions, such as units per token, with intervals; differences of two of them.

What is summed within a question depends on each other, so questions are the unit, not tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hmoe.statistics.student_t import compute_t_quantile, compute_t_tail

_ROUNDING = 1e-12  # relative: ratios that differ by less are equal


@dataclass(frozen=True)
class RatioEstimate:
    """A ratio of two sums over questions.

    Attributes:
        value: the ratio.
        error: its standard error; None for less than two questions, or where each has the same ratio: that all are
            equal says nothing of how others would vary.
        count: number of questions.
    """

    value: float
    error: float | None
    count: int

    def compute_interval(self, confidence: float = 0.95) -> tuple[float | None, float | None]:
        """Return the ends of the Student-t interval; None where there is none."""
        if self.error is None:
            return None, None
        half_width = compute_t_quantile(1 - confidence, self.count - 1) * self.error
        return self.value - half_width, self.value + half_width


@dataclass(frozen=True)
class RatioDifference:
    """How far a ratio is above another one, of other questions.

    Attributes:
        value: the difference.
        low, high: ends of its interval; None where there is none.
        tail: two-sided p; None without an interval.
    """

    value: float
    low: float | None
    high: float | None
    tail: float | None


def estimate_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> RatioEstimate:
    """Return sum(numerators) / sum(denominators), one of each a question, with its standard error.

    The delete-one jackknife over questions, which is `estimate_jackknife_interval` with a group for each. Every
    denominator must be above 0.
    """
    top, bottom = (np.asarray(values, np.float64) for values in (numerators, denominators))
    value, count = float(top.sum() / bottom.sum()), len(top)
    if count < 2 or _are_equal(top / bottom):
        return RatioEstimate(value, None, count)
    left_out = (top.sum() - top) / (bottom.sum() - bottom)
    squares = np.square(left_out - left_out.mean()).sum()
    return RatioEstimate(value, math.sqrt((count - 1) / count * squares), count)


def compare_ratios(first: RatioEstimate, second: RatioEstimate, confidence: float = 0.95) -> RatioDifference:
    """Return the first ratio minus the second, of independent questions, as Welch compares two means.

    Degrees of freedom are rounded down, which makes the interval a little wider. Without an interval of each there is
    none of the difference.
    """
    difference = first.value - second.value
    if first.error is None or second.error is None:
        return RatioDifference(difference, None, None, None)
    variances = [first.error**2, second.error**2]
    total = sum(variances)
    shares = [variance / total for variance in variances]
    spread = sum(share**2 / (each.count - 1) for share, each in zip(shares, (first, second), strict=True))
    degrees, error = max(1, math.floor(1 / spread + 1e-9)), math.sqrt(total)
    half_width = compute_t_quantile(1 - confidence, degrees) * error
    return RatioDifference(
        difference,
        difference - half_width,
        difference + half_width,
        compute_t_tail(difference / error, degrees),
    )


def _are_equal(values: npt.NDArray[np.float64]) -> bool:
    return bool(np.ptp(values) <= _ROUNDING * np.abs(values).max())
