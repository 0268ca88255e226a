"""Paired differences: planted ones are found, nulls are left alone, intervals hold what they promise."""

import random
import statistics

import pytest

from hmoe.statistics.intervals import (
    compute_mean_interval,
    compute_trimmed_interval,
    estimate_detectable_difference,
)
from hmoe.statistics.paired import adjust_holm, compare_paired, compute_sign_flip

stats = pytest.importorskip("scipy.stats")


def draw(generator: random.Random, count: int, shift: float = 0.0) -> list[float]:
    return [generator.gauss(shift, 1) for _ in range(count)]


@pytest.mark.parametrize("count", [2, 3, 5, 12])
def test_intervals_are_those_of_scipy(count: int) -> None:
    values = draw(random.Random(count), count, 0.3)
    interval = compute_mean_interval(values, 0.9)
    result = stats.ttest_1samp(values, 0)
    low, high = result.confidence_interval(0.9)
    assert (interval.low, interval.high) == pytest.approx((low, high))
    assert interval.tail == pytest.approx(result.pvalue)
    assert interval.mean == pytest.approx(statistics.fmean(values))


def test_a_single_value_and_equal_ones_have_no_interval() -> None:
    single = compute_mean_interval([0.1])
    assert (single.half_width, single.low, single.high, single.tail) == (None, None, None, None)
    for equal in ([0.1] * 3, [0.0] * 3, [0.1, 0.30000000000000004 - 0.2]):
        assert compute_mean_interval(equal).half_width is compute_mean_interval(equal).tail is None


@pytest.mark.parametrize("count", [2, 4, 5, 8, 12])
def test_trimmed_intervals_are_yuen_s_and_hold_what_they_promise(count: int) -> None:
    generator = random.Random(count)
    values = draw(generator, count, 0.3)
    interval = compute_trimmed_interval(values, 0.9)
    assert interval.mean == pytest.approx(stats.trim_mean(values, 0.2))
    trimmed = int(0.2 * count)
    if trimmed:  # scipy's Welch test of trimmed samples, beside one that does not vary but for a hair
        result = stats.ttest_ind(values, [1e-9 * k for k in range(count)], trim=0.2, equal_var=False)
        assert interval.tail == pytest.approx(result.pvalue, rel=1e-5)
        far = compute_trimmed_interval([*sorted(values)[:-1], 1e6], 0.9)
        assert (far.mean, far.low) == pytest.approx((interval.mean, interval.low))
    else:
        plain = compute_mean_interval(values, 0.9)
        assert (interval.low, interval.high) == pytest.approx((plain.low, plain.high))
    held = 0
    for _ in range(1000):
        own = compute_trimmed_interval(draw(generator, count))
        assert own.low is not None
        assert own.high is not None
        held += own.low <= 0 <= own.high
    assert 915 <= held <= 975


@pytest.mark.parametrize("values", [[0.3, 0.1], [1.0, -2.0, 0.5], [0.2, 0.3, 0.1, 0.4, 0.2, 0.3]])
def test_sign_flips_are_those_of_scipy(values: list[float]) -> None:
    test = stats.permutation_test(
        (values, [0.0] * len(values)), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples"
    )
    assert compute_sign_flip(values) == pytest.approx(test.pvalue)


def test_many_differences_are_flipped_at_random_and_reproducibly() -> None:
    values = draw(random.Random(1), 18, 0.3)
    assert compute_sign_flip(values) == compute_sign_flip(values)
    assert compute_sign_flip(values) == pytest.approx(compute_mean_interval(values).tail or 0, abs=0.03)


def test_holm_is_that_of_the_textbook() -> None:
    assert adjust_holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06}
    )
    assert adjust_holm({}) == {}


def test_an_interval_excludes_zero_exactly_where_holm_rejects() -> None:
    generator, rejected = random.Random(0), 0
    for _ in range(300):
        differences = {
            name: draw(generator, generator.randint(2, 6), generator.choice((0, 2, 4))) for name in "abcd"
        }
        for result in compare_paired(differences).values():
            assert result.excludes_zero == (result.adjusted_tail <= 0.05)
            rejected += result.excludes_zero
    assert 200 < rejected < 1000


def test_nulls_are_announced_in_at_most_five_of_a_hundred_experiments() -> None:
    generator, wrong = random.Random(3), 0
    for _ in range(2000):
        results = compare_paired({name: draw(generator, 3) for name in "abcd"})
        wrong += any(result.excludes_zero for result in results.values())
    assert 0.02 < wrong / 2000 < 0.07


def test_a_planted_difference_is_found_with_its_size() -> None:
    results = compare_paired(
        {"ahead": [-0.05, -0.052, -0.049], "null": [0.004, -0.003, 0.001], "single": [9.0]}
    )
    assert results["ahead"].excludes_zero
    assert results["ahead"].interval.mean == pytest.approx(-0.0503, abs=1e-3)
    assert results["ahead"].confidence == pytest.approx(0.975)
    assert not results["null"].excludes_zero
    assert results["single"].interval.half_width is results["single"].adjusted_tail is None
    assert not results["single"].excludes_zero


def test_the_detectable_difference_is_detected_about_as_often_as_it_says() -> None:
    generator = random.Random(5)
    for count in (4, 8):
        expected = statistics.fmean(
            estimate_detectable_difference(draw(generator, count)) or 0 for _ in range(400)
        )
        samples = [compute_mean_interval(draw(generator, count, expected)) for _ in range(400)]
        shown = sum(sample.low > 0 or sample.high < 0 for sample in samples) / 400
        assert 0.65 < shown < 0.92
    assert estimate_detectable_difference([0.1]) is None
