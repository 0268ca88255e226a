"""Power of paired seeds: against scipy's integrals, the noncentral t, and simulation."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from hmoe.errors import ConfigError
from hmoe.statistics.intervals import estimate_detectable_difference
from hmoe.statistics.power import (
    Spread,
    analyze_power,
    compute_power,
    count_needed_pairs,
    find_detectable_difference,
    measure_spread,
)


def integrate_power(difference: float, num_pairs: int, level: float) -> float:
    """Over the chi distribution of the estimated spread, by adaptive quadrature."""
    degrees, shift = num_pairs - 1, difference * math.sqrt(num_pairs)
    quantile = stats.t.isf(level / 2, degrees)

    def integrand(s: float) -> float:
        density = stats.chi.pdf(s * math.sqrt(degrees), degrees) * math.sqrt(degrees)
        return float(density * (stats.norm.sf(quantile * s - shift) + stats.norm.sf(quantile * s + shift)))

    return float(integrate.quad(integrand, 0, 12, points=[0.1, 0.5, 1, 2], limit=400)[0])


@pytest.mark.parametrize("num_pairs", [2, 3, 5, 20])
@pytest.mark.parametrize("level", [0.05, 0.01])
def test_power_is_the_integral_over_the_estimated_spread(num_pairs: int, level: float) -> None:
    for difference in (0.0, 0.3, 1.0, 4.0):
        expected = integrate_power(difference, num_pairs, level)
        assert compute_power(difference * 7, 7.0, num_pairs, level) == pytest.approx(expected, abs=2e-6)


def test_power_is_scipy_s_noncentral_t() -> None:
    """But for the tail of the other side, and where scipy's has no value."""
    quantile = stats.t.isf(0.025, 9)
    for difference in (0.9, 1.0, 1.5):
        tail = stats.nct.sf(quantile, 9, difference * math.sqrt(10))
        assert compute_power(difference, 1.0, 10) == pytest.approx(float(tail), abs=1e-5)


@pytest.mark.parametrize("num_pairs", [2, 3, 8])
def test_the_detectable_difference_is_detected_in_four_of_five_experiments(num_pairs: int) -> None:
    difference = find_detectable_difference(0.02, num_pairs)
    assert difference is not None
    draws = np.random.default_rng(0).normal(difference, 0.02, (20_000, num_pairs))
    rejected = stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05
    assert rejected.mean() == pytest.approx(0.8, abs=0.012)


def test_of_measured_differences_it_is_the_one_that_compare_prints() -> None:
    differences = [0.01, -0.02, 0.004, 0.03]
    spread = measure_spread(differences)
    assert spread is not None
    analysis = analyze_power(spread, 4)
    assert analysis.detectable == pytest.approx(estimate_detectable_difference(differences), rel=1e-12)
    assert find_detectable_difference(0.02, 1) is None
    assert find_detectable_difference(0.0, 3) == 0


@pytest.mark.parametrize(("difference", "spread"), [(0.01, 0.03), (0.01, 0.01), (0.01, 0.001), (0.05, 0.04)])
def test_the_needed_pairs_are_the_fewest_that_detect(difference: float, spread: float) -> None:
    pairs = count_needed_pairs(difference, spread)
    assert pairs is not None
    assert compute_power(difference, spread, pairs) >= 0.8
    assert pairs == 2 or compute_power(difference, spread, pairs - 1) < 0.8
    least = find_detectable_difference(spread, pairs)
    assert least is not None
    assert least <= difference


def test_more_than_ten_thousand_pairs_are_none() -> None:
    assert count_needed_pairs(0.01, 10.0) is None
    assert count_needed_pairs(0.01, 0.1) == pytest.approx(((1.96 + 0.8416) * 10) ** 2, rel=5e-3)


def test_a_measured_spread_has_the_interval_of_chi_square() -> None:
    generator = np.random.default_rng(1)
    draws = generator.normal(0.1, 2.0, (600, 3))
    spreads = [measure_spread(list(row)) for row in draws]
    held = [s.low <= 2.0 <= s.high for s in spreads if s and s.low is not None and s.high is not None]
    assert len(held) == 600
    assert np.mean(held) == pytest.approx(0.95, abs=0.025)
    assert measure_spread([1.0]) is measure_spread([0.5, 0.5]) is measure_spread([1.0], [3.0]) is None
    pooled = measure_spread([1.0, 2.0, 6.0], [11.0], [101.0, 103.0])
    assert pooled is not None
    assert pooled.num_pairs == 4
    assert abs(pooled.value - math.sqrt((4 + 1 + 9 + 1 + 1) / 3)) < 1e-12
    alone = measure_spread([1.0, 2.0, 6.0, 7.0])
    assert alone is not None
    assert pooled.low is not None
    assert alone.low is not None
    assert abs(pooled.low / pooled.value - alone.low / alone.value) < 1e-12  # three degrees of freedom each


def test_the_ends_of_an_analysis_are_those_of_its_spread() -> None:
    spread = measure_spread([0.01, -0.02, 0.004])
    assert spread is not None
    analysis = analyze_power(spread, 6, 0.02)
    assert analysis.detectable is not None
    for end, width in ((analysis.detectable_low, spread.low), (analysis.detectable_high, spread.high)):
        assert width is not None
        assert end == pytest.approx(analysis.detectable * width / spread.value, rel=1e-9)
    assert analysis.pairs_needed == count_needed_pairs(0.02, spread.value)
    assert spread.low is not None
    assert analysis.pairs_needed_low == count_needed_pairs(0.02, spread.low)
    assert analysis.pairs_needed_high is not None
    assert analysis.pairs_needed is not None
    assert analysis.pairs_needed_high > analysis.pairs_needed
    assumed = analyze_power(Spread(0.02), 6)
    assert assumed.detectable == find_detectable_difference(0.02, 6)
    assert assumed.detectable_low is assumed.detectable_high is assumed.pairs_needed_high is None


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: find_detectable_difference(-1.0, 3), "spread = -1"),
        (lambda: find_detectable_difference(1.0, 3, power=0.01), "power = 0.01: must be above the level"),
        (lambda: find_detectable_difference(1.0, 3, level=1.5), "level = 1.5"),
        (lambda: count_needed_pairs(0.0, 1.0), "difference = 0"),
        (lambda: count_needed_pairs(1.0, 0.0), "spread = 0"),
    ],
)
def test_what_cannot_be_is_refused(call, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=words):
        call()
