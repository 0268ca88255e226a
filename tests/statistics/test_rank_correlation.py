import numpy as np
import pytest
from scipy import stats

from hmoe.statistics.rank_correlation import (
    FeatureCorrelator,
    compute_partial_spearman,
    compute_spearman,
    rank_values,
    standardise_ranks,
)


def _partial_by_residuals(first, second, given):
    """Pearson's correlation of what straight lines on the ranks of the third leave."""
    x, y, z = (stats.rankdata(values) for values in (first, second, given))
    design = np.stack([np.ones(len(z)), z], axis=1)
    left = [values - design @ np.linalg.lstsq(design, values, rcond=None)[0] for values in (x, y)]
    return np.corrcoef(left)[0, 1]


@pytest.mark.parametrize("size", [1, 2, 7, 1023, 1024, 3000])
@pytest.mark.parametrize("most", [2, 50, 10**6])
def test_ranks_equal_scipys(size, most):
    values = np.random.default_rng(size).integers(0, most, (3, size))
    for table in (values, values - most // 2, values / 7, values.astype(np.int16 if most < 99 else np.int32)):
        np.testing.assert_array_equal(rank_values(table), stats.rankdata(table, axis=1))


def test_ranks_of_other_shapes():
    values = np.random.default_rng(0).integers(0, 4, (2, 3, 5))
    np.testing.assert_array_equal(rank_values(values), stats.rankdata(values, axis=2))
    np.testing.assert_array_equal(rank_values([3, 1, 1]), [3, 1.5, 1.5])
    assert rank_values(np.zeros((2, 0))).shape == (2, 0)


@pytest.mark.parametrize("seed", range(50))
def test_correlations_equal_independent_ones(seed):
    rng = np.random.default_rng(seed)
    size, ties = int(rng.integers(4, 2000)), int(rng.integers(2, 60))
    z = rng.integers(0, ties, size)
    z[:2] = 0, 1
    x, y = z + rng.normal(0, ties, size), np.round(rng.normal(0, 3, size) + 0.2 * z)
    assert compute_spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert compute_partial_spearman(x, y, z) == pytest.approx(_partial_by_residuals(x, y, z), abs=1e-9)


def test_rows_broadcast():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 1, 30)), rng.normal(size=(3, 30))
    both = compute_spearman(x, y)
    assert both.shape == (4, 3)
    assert both[2, 1] == pytest.approx(stats.spearmanr(x[2, 0], y[1]).statistic)


def test_what_has_no_correlation_is_nan():
    rising = np.arange(5)
    assert np.isnan(compute_spearman(np.ones(5), rising))
    assert np.isnan(compute_spearman([1.0, np.nan, 2, 3, 4], rising))
    assert np.isnan(compute_spearman([1], [2]))
    assert np.isnan(compute_spearman(np.zeros((2, 0)), np.zeros((2, 0)))).all()
    assert compute_spearman(rising, -np.exp(rising)) == -1
    # The third variable says all of the second, up to its scale; nothing is left to correlate.
    assert np.isnan(compute_partial_spearman([3, 1, 2, 5, 4], rising, rising**3))
    assert np.isnan(standardise_ranks([[2, 2], [1, 2]])[0]).all()


def test_features_are_compared_where_they_are_known():
    rng = np.random.default_rng(1)
    frequency, nll = rng.normal(size=40), rng.normal(size=40)
    senses = np.where(np.arange(40) % 3 == 0, np.nan, rng.integers(1, 9, 40))
    rows = rng.integers(0, 5, (2, 40))
    correlator = FeatureCorrelator({"frequency": frequency, "senses": senses, "nll": nll}, "frequency")
    questions = ["frequency", "senses", "senses given", "nll", "nll given"]
    assert [name + " given" * bool(given) for name, given in correlator.questions] == questions
    assert correlator.counts == [40, 26, 26, 40, 40]
    answers, known = correlator.correlate(rows), ~np.isnan(senses)
    for row in range(2):
        assert answers[1, row] == pytest.approx(stats.spearmanr(rows[row, known], senses[known]).statistic)
        expected = _partial_by_residuals(rows[row, known], senses[known], frequency[known])
        assert answers[2, row] == pytest.approx(expected)
        assert answers[4, row] == pytest.approx(_partial_by_residuals(rows[row], nll, frequency))
    places = {
        "frequency": np.argsort(np.argsort(frequency)),
        "senses": np.nan_to_num(senses, nan=-1).astype(int),
    }
    whole = FeatureCorrelator(places, "frequency")
    np.testing.assert_allclose(whole.correlate(rows), answers[:3])


def test_features_without_items():
    correlator = FeatureCorrelator({"frequency": np.zeros(0), "nll": np.zeros(0)}, "frequency")
    assert np.isnan(correlator.correlate(np.zeros((3, 0)))).all()
    assert correlator.counts == [0, 0, 0]


def test_items_without_the_fixed_feature_take_no_part():
    frequency, nll = np.array([3.0, 1, np.nan, 2, 5]), np.array([4.0, 1, 9, 5, 2])
    row = np.array([[1.0, 5, 0, 2, 4]])
    correlator = FeatureCorrelator({"frequency": frequency, "nll": nll}, "frequency")
    assert correlator.counts == [4, 4, 4]
    known = [0, 1, 3, 4]
    assert correlator.correlate(row)[1, 0] == pytest.approx(
        stats.spearmanr(row[0, known], nll[known]).statistic
    )
