"""Mantel's test: by hand, on planted associations, and on nulls."""

import itertools

import numpy as np
import pytest

from hmoe.statistics.mantel import MantelTest, list_compared, remove_expected, run_mantel_test

stats = pytest.importorskip("scipy.stats")


def draw_distances(generator, count, layers=1):
    points = generator.normal(size=(layers, count, 3))
    return np.linalg.norm(points[:, :, None] - points[:, None], axis=-1)


def correlate_slowly(values, distances):
    pairs = list(itertools.combinations(range(len(values)), 2))
    correlations = [
        stats.pearsonr([abs(values[a] - values[b]) for a, b in pairs], [layer[a, b] for a, b in pairs])[0]
        for layer in distances
    ]
    return np.mean(correlations)


@pytest.mark.parametrize("seed", range(50))
def test_all_orders_are_tried(seed):
    generator = np.random.default_rng(seed)
    count, layers = int(generator.integers(3, 6)), int(generator.integers(1, 4))
    values, distances = generator.permutation(count) ** 2.0, draw_distances(generator, count, layers)
    test = run_mantel_test(values, distances)
    every = [correlate_slowly(values[list(o)], distances) for o in itertools.permutations(range(count))]
    assert test.correlation == pytest.approx(every[0])
    assert test.tail == pytest.approx(np.mean(np.array(every) >= every[0] - 1e-9))
    assert (test.num_orders, test.num_compared, test.num_layers) == (len(every), count, layers)


def test_random_orders_agree_with_all_of_them(monkeypatch):
    generator = np.random.default_rng(3)
    values, distances = np.arange(7.0), draw_distances(generator, 7, 2)
    exact = run_mantel_test(values, distances)
    monkeypatch.setattr("hmoe.statistics.mantel.MOST_EXACT", 6)
    drawn = run_mantel_test(values, distances, seed=1)
    assert (exact.num_orders, drawn.num_orders) == (5040, 10_000)
    assert 0.05 < exact.tail < 0.95
    assert drawn.tail == pytest.approx(exact.tail, abs=0.02)
    assert drawn == run_mantel_test(values, distances, seed=1)
    assert drawn.tail != run_mantel_test(values, distances, seed=2).tail


@pytest.mark.parametrize(("count", "least"), [(6, 2 / 720), (12, 1 / 10_000)])
def test_a_perfect_association_has_the_smallest_tail(count, least):
    values = np.arange(count) * 64.0
    distances = np.abs(values[:, None] - values)[None] * 0.01
    test = run_mantel_test(values, distances)
    assert test.correlation == pytest.approx(1)
    assert least <= test.tail <= 2 * least
    opposite = run_mantel_test(values, 10 - distances)
    assert opposite.correlation == pytest.approx(-1)
    assert opposite.tail == 1  # one-sided


def test_layers_are_permuted_together():
    """What all layers share, however weak in each, counts; what one layer has, others dilute."""
    generator = np.random.default_rng(0)
    values = np.arange(6.0)
    layers = draw_distances(generator, 6, 12) + 0.3 * np.abs(values[:, None] - values)
    each = [run_mantel_test(values, layer[None]).tail for layer in layers]
    assert run_mantel_test(values, layers).tail < 0.005 < np.median(each)


def test_the_null_is_rejected_at_its_rate():
    generator = np.random.default_rng(1)
    tails = [run_mantel_test(np.arange(5.0) ** 2, draw_distances(generator, 5, 2)).tail for _ in range(1000)]
    low, high = stats.binom.interval(0.99, 1000, 0.05)
    assert low <= np.sum(np.array(tails) <= 0.05) <= high


def test_where_nothing_can_be_said():
    distances = draw_distances(np.random.default_rng(0), 4, 2)
    assert run_mantel_test(np.full(4, 64.0), distances) is None
    assert run_mantel_test(np.arange(2.0), distances[:, :2, :2]) is None
    assert run_mantel_test(np.arange(4.0), np.where(np.eye(4), 0, [[[0.7]]])) is None
    assert run_mantel_test(np.arange(4.0), np.full((2, 4, 4), np.nan)) is None
    assert run_mantel_test(np.zeros(0), np.zeros((0, 0, 0))) is None
    assert run_mantel_test(np.arange(4.0), distances) is not None


def test_things_without_distances_are_left_out():
    values, distances = np.array([0.0, 7, 1, 2, 4]), draw_distances(np.random.default_rng(0), 5, 2)
    distances[:, 1] = distances[:, :, 1] = np.nan
    kept = [0, 2, 3, 4]
    assert list_compared(distances).tolist() == kept
    assert run_mantel_test(values, distances) == run_mantel_test(values[kept], distances[:, kept][:, :, kept])
    distances[1, 0] = distances[1, :, 0] = np.nan  # dead in one layer alone
    both = run_mantel_test(values, distances)
    assert (both.num_compared, both.num_orders, both.num_layers) == (4, 24, 2)
    alone = [run_mantel_test(values, layer[None]).correlation for layer in distances]
    assert both.correlation == pytest.approx(np.mean(alone))
    distances[1, 2:] = distances[1, :, 2:] = np.nan  # nothing left of the second layer
    first = run_mantel_test(values, distances[:1])
    assert isinstance(first, MantelTest)
    assert run_mantel_test(values, distances) == first


def test_residuals_are_those_of_the_regression():
    generator = np.random.default_rng(0)
    distances, expected = draw_distances(generator, 5, 2), draw_distances(generator, 5, 2)
    distances[:, 4] = distances[:, :, 4] = np.nan
    residuals = remove_expected(distances, expected)
    pairs = np.triu_indices(4, 1)
    for layer in range(2):
        y, x = distances[layer][pairs], expected[layer][pairs]
        line = stats.linregress(x, y)
        assert residuals[layer][pairs] == pytest.approx(y - line.intercept - line.slope * x)
    assert np.isnan(residuals[:, 4]).all()
    assert np.isnan(remove_expected(distances, np.full_like(expected, np.nan))).all()
    alike = remove_expected(distances, np.ones_like(expected))[0][pairs]
    assert alike == pytest.approx(distances[0][pairs] - distances[0][pairs].mean())
    explained = remove_expected(3 * expected + 0.1, expected)
    assert run_mantel_test(np.arange(5.0), explained) is None
