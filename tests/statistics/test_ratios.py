"""Ratios over questions: against the jackknife, scipy's Welch test, and simulated truths and nulls."""

import numpy as np
import pytest
from scipy import stats

from hmoe.statistics.jackknife import estimate_jackknife_interval
from hmoe.statistics.ratios import RatioEstimate, compare_ratios, estimate_ratio


def draw(rng: np.random.Generator, count: int, ratio: float) -> tuple[list[float], list[float]]:
    """Questions of different lengths, each with a ratio of its own around the given one."""
    tokens = rng.integers(5, 60, count).astype(float)
    return list(tokens * (ratio + 0.05 * rng.standard_normal(count))), list(tokens)


@pytest.mark.parametrize("count", [2, 3, 40])
def test_a_ratio_is_that_of_the_sums_and_its_interval_the_jackknife_s(count: int) -> None:
    units, tokens = draw(np.random.default_rng(count), count, 0.4)
    estimate = estimate_ratio(units, tokens)
    reference = estimate_jackknife_interval(lambda u, t: u / t, [np.array(units), np.array(tokens)])
    assert estimate.value == pytest.approx(float(reference.value), rel=1e-12)
    assert estimate.compute_interval() == pytest.approx(
        (float(reference.low), float(reference.high)), rel=1e-9
    )


def test_what_does_not_vary_has_no_interval() -> None:
    for units, tokens in ([[3.0], [10.0]], [[3.0, 6.0, 0.3], [10.0, 20.0, 1.0]], [[0.0, 0.0], [1.0, 2.0]]):
        assert estimate_ratio(units, tokens).error is None
        assert estimate_ratio(units, tokens).compute_interval() == (None, None)
    varied = estimate_ratio([1.0, 3.0], [2.0, 2.0])
    difference = compare_ratios(varied, estimate_ratio([3.0], [10.0]))
    assert (difference.low, difference.high, difference.tail) == (None, None, None)
    assert difference.value == pytest.approx(0.7)


def test_with_equal_denominators_it_is_welch_s_test_of_means() -> None:
    """But for the degrees of freedom, which are rounded down."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.5, 0.1, 30), rng.normal(0.4, 0.3, 12)
    ours = compare_ratios(estimate_ratio(list(a), [1.0] * 30), estimate_ratio(list(b), [1.0] * 12))
    welch = stats.ttest_ind(a, b, equal_var=False)
    assert ours.value == pytest.approx(a.mean() - b.mean())
    assert ours.tail == pytest.approx(2 * stats.t.sf(abs(welch.statistic), int(welch.df)), rel=1e-9)
    low, high = welch.confidence_interval()
    assert ours.low is not None
    assert ours.high is not None
    assert ours.low <= low < high <= ours.high
    assert ours.high - ours.low == pytest.approx(high - low, rel=0.02)


def test_equal_variances_and_counts_have_all_degrees_of_freedom() -> None:
    """1 / (1 / 4 / 9 + 1 / 4 / 9) is 18, and must not become 17 by rounding."""
    estimates = RatioEstimate(0.5, 0.1, 10), RatioEstimate(0.2, 0.1, 10)
    expected = 2 * stats.t.sf(0.3 / np.hypot(0.1, 0.1), 18)
    assert compare_ratios(*estimates).tail == pytest.approx(expected, rel=1e-9)


def test_intervals_hold_the_truth_and_nulls_pass_at_their_rate() -> None:
    rng = np.random.default_rng(1)
    covered = rejected = 0
    for _ in range(400):
        first, second = (estimate_ratio(*draw(rng, count, 0.4)) for count in (40, 25))
        low, high = first.compute_interval()
        assert low is not None
        assert high is not None
        covered += low <= 0.4 <= high
        tail = compare_ratios(first, second).tail
        rejected += tail is not None and tail < 0.05
    assert stats.binomtest(covered, 400, 0.95).pvalue > 0.01
    assert stats.binomtest(rejected, 400, 0.05).pvalue > 0.01
    planted = compare_ratios(estimate_ratio(*draw(rng, 60, 0.45)), estimate_ratio(*draw(rng, 60, 0.4)))
    assert planted.tail is not None
    assert planted.tail < 0.01
