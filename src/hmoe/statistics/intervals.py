"""Means of a few repetitions with Student-t intervals, and what so few could show."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from hmoe.statistics.power import find_detectable_difference
from hmoe.statistics.student_t import compute_t_quantile, compute_t_tail

_TRIMMED = 0.2  # share of the values that is left out on either side
_ROUNDING = 1e-12  # relative: values that differ by less are equal


@dataclass(frozen=True)
class MeanInterval:
    """A mean with its interval; a single value, or values that do not vary, have none.

    Attributes:
        mean: of the values.
        half_width: the interval is mean - half_width to mean + half_width, or None.
        count: number of values.
        tail: two-sided p of the t test: how probable a mean so far from zero would be if the truth were zero.
    """

    mean: float
    half_width: float | None
    count: int
    tail: float | None

    @property
    def low(self) -> float | None:
        """Lower end of the interval."""
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        """Upper end of the interval."""
        return None if self.half_width is None else self.mean + self.half_width


def compute_mean_interval(values: Sequence[float], confidence: float = 0.95) -> MeanInterval:
    """Return the mean of independent values with its Student-t interval.

    Values that do not vary have none: that they are equal says nothing of how others would vary.
    """
    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return MeanInterval(mean, None, count, None)
    error = statistics.stdev(values) / math.sqrt(count)
    if error <= _ROUNDING * max(map(abs, values)):
        return MeanInterval(mean, None, count, None)
    tail = compute_t_tail(mean / error, count - 1)
    return MeanInterval(mean, compute_t_quantile(1 - confidence, count - 1) * error, count, tail)


def compute_trimmed_interval(values: Sequence[float], confidence: float = 0.95) -> MeanInterval:
    """Return the mean of independent values without the least and the largest fifth, with its interval.

    For values of which a few may be far off for reasons of their own, such as times of a machine that others use too.
    Student's t of the winsorised spread (Yuen 1974): one value in five or more can be anywhere on either
    side. Values that do not vary have no interval.
    """
    order, count = sorted(values), len(values)
    trimmed = int(_TRIMMED * count)
    kept = order[trimmed : count - trimmed]
    mean = statistics.fmean(kept)
    if len(kept) < 2:
        return MeanInterval(mean, None, count, None)
    winsorised = [kept[0]] * trimmed + kept + [kept[-1]] * trimmed
    error = statistics.stdev(winsorised) * math.sqrt((count - 1) / len(kept) / (len(kept) - 1))
    if error <= _ROUNDING * max(map(abs, values)):
        return MeanInterval(mean, None, count, None)
    tail = compute_t_tail(mean / error, len(kept) - 1)
    return MeanInterval(mean, compute_t_quantile(1 - confidence, len(kept) - 1) * error, count, tail)


def estimate_detectable_difference(
    differences: Sequence[float], power: float = 0.8, confidence: float = 0.95
) -> float | None:
    """Return the smallest true difference that as many repetitions would show with this power.

    That of the t test, exactly, as if the true spread were that of the differences; for less than two there is none.
    """
    if len(differences) < 2:
        return None
    return find_detectable_difference(statistics.stdev(differences), len(differences), power, 1 - confidence)
