import numpy as np
import pytest
from scipy import stats

from hmoe.statistics.jackknife import estimate_jackknife_interval


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return numerator / denominator


def test_of_a_mean_it_is_students_interval() -> None:
    values = np.random.default_rng(0).normal(3, 1, (9, 2))
    interval = estimate_jackknife_interval(divide, [values, np.ones((9, 1))])
    low, high = stats.t.interval(0.95, 8, values.mean(0), stats.sem(values))
    np.testing.assert_allclose(interval.value, values.mean(0))
    np.testing.assert_allclose(interval.low, low)
    np.testing.assert_allclose(interval.high, high)


def test_against_leaving_out_by_hand() -> None:
    draw = np.random.default_rng(1)
    pairs, tokens = draw.integers(1, 50, (7, 3)), draw.integers(50, 90, 7)
    interval = estimate_jackknife_interval(
        lambda pairs, tokens: np.log(pairs / tokens), [pairs, tokens], confidence=0.9
    )
    left_out = np.array(
        [np.log(np.delete(pairs, i, 0).sum(0) / np.delete(tokens, i).sum()) for i in range(7)]
    )
    error = np.sqrt(6 / 7 * ((left_out - left_out.mean(0)) ** 2).sum(0))
    np.testing.assert_allclose(interval.high - interval.value, stats.t.ppf(0.95, 6) * error)
    np.testing.assert_allclose(interval.value - interval.low, interval.high - interval.value)


@pytest.mark.parametrize("groups", [0, 1])
def test_fewer_than_two_groups_have_no_interval(groups: int) -> None:
    table = np.zeros((5, 2))
    table[:groups] = 4
    interval = estimate_jackknife_interval(lambda total: total, [table])
    np.testing.assert_array_equal(interval.value, [4 * groups] * 2)
    assert np.isnan(interval.low).all()
    assert np.isnan(interval.high).all()


def test_groups_without_anything_take_no_part() -> None:
    values = np.array([1.0, 0, 4, 0, 2])
    counts = np.array([1.0, 0, 1, 0, 1])
    interval = estimate_jackknife_interval(divide, [values, counts])
    assert float(interval.low) == pytest.approx(stats.t.interval(0.95, 2, 7 / 3, stats.sem([1, 4, 2]))[0])


def test_it_covers_the_truth_where_documents_differ() -> None:
    """95% of the intervals of a ratio hold it, though tokens of a document depend on each other."""
    draw, hits = np.random.default_rng(2), 0
    for _ in range(400):
        lengths = draw.integers(20, 400, 30)
        rates = draw.beta(2, 6, 30)
        interval = estimate_jackknife_interval(divide, [draw.binomial(lengths, rates), lengths])
        hits += float(interval.low) <= 0.25 <= float(interval.high)
    assert 0.91 * 400 <= hits <= 0.975 * 400
