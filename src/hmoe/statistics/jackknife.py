"""Intervals of any number that is computed from sums, by leaving out one group of documents after another."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hmoe.statistics.student_t import compute_t_quantile

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class EstimateInterval:
    """A statistic of all groups, with an interval for each of its entries.

    Attributes:
        value: of all groups together.
        low, high: ends of the interval; NaN where there is none.
    """

    value: Values
    low: Values
    high: Values


def estimate_jackknife_interval(
    compute: Callable[..., Any], tables: Sequence[npt.NDArray[Any]], confidence: float = 0.95
) -> EstimateInterval:
    """Return a statistic of summed tables with the interval that the differences between their groups give.

    The delete-a-group jackknife: the statistic is computed without each group in turn; its variance is
    (n - 1) / n times the sum of squared deviations from the mean of these, and the interval Student's t with n - 1
    degrees of freedom. Groups are of documents, never of tokens, which depend on each other. A group that is zero in
    all tables takes no part; fewer than two have no interval.

    Args:
        compute: gets each table summed over groups and returns a number or an array.
        tables: each of shape (groups, ...).
        confidence: of the interval of each entry.
    """
    used = np.any([np.reshape(table != 0, (len(table), -1)).any(1) for table in tables], axis=0)
    totals = [table.sum(0) for table in tables]
    value = np.asarray(compute(*totals), dtype=np.float64)
    groups = np.flatnonzero(used)
    if len(groups) < 2:
        nothing = np.full_like(value, np.nan)
        return EstimateInterval(value, nothing, nothing)
    left_out = np.stack(
        [
            compute(*(total - table[group] for total, table in zip(totals, tables, strict=True)))
            for group in groups
        ]
    ).astype(np.float64)
    deviations = left_out - left_out.mean(0)
    error = np.sqrt((len(groups) - 1) / len(groups) * np.square(deviations).sum(0))
    half_width = compute_t_quantile(1 - confidence, len(groups) - 1) * error
    return EstimateInterval(value, value - half_width, value + half_width)
