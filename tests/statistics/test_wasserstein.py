"""Distances against scipy's, nulls against tables that are really drawn."""

import numpy as np
import pytest

from hmoe.statistics import wasserstein
from hmoe.statistics.wasserstein import (
    estimate_null_distances,
    measure_line_distances,
    measure_sliced_distance,
    project_points,
    sort_positions,
)

stats = pytest.importorskip("scipy.stats")


def draw_weights(generator, *shape):
    """Counts of which many are 0, and ties."""
    return generator.poisson(generator.gamma(0.5, 4, shape))


@pytest.mark.parametrize("seed", range(50))
def test_distances_on_a_line_are_those_of_scipy(seed):
    generator = np.random.default_rng(seed)
    num_points = int(generator.integers(1, 60))
    positions = np.round(generator.normal(size=num_points), int(generator.integers(0, 6)))
    weights = draw_weights(generator, 2, 5, num_points)
    distances = measure_line_distances(weights, [sort_positions(positions)])
    for group in range(2):
        for a in range(5):
            for b in range(5):
                pair = weights[group, [a, b]]
                if pair.sum(1).all():
                    expected = stats.wasserstein_distance(positions, positions, *pair)
                    assert distances[group, a, b] == pytest.approx(expected, abs=1e-12)
                else:
                    assert np.isnan(distances[group, a, b])


def measure_slowly(points_a, points_b, weights_a, weights_b, directions):
    lines = [stats.wasserstein_distance(points_a @ d, points_b @ d, weights_a, weights_b) for d in directions]
    return np.mean(lines)


@pytest.mark.parametrize("seed", range(50))
def test_sliced_distances_are_means_over_directions(seed):
    generator = np.random.default_rng(seed)
    size_a, size_b, dimensions = generator.integers(1, 30, 3)
    points_a, points_b = (
        generator.normal(size=(size_a, dimensions)),
        generator.normal(1, 2, (size_b, dimensions)),
    )
    weights_a, weights_b = generator.integers(1, 9, size_a), generator.random(size_b) + 0.1
    directions = np.random.default_rng(seed).standard_normal((11, dimensions))
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    distance = measure_sliced_distance(points_a, points_b, weights_a, weights_b, 11, seed)
    assert distance == pytest.approx(measure_slowly(points_a, points_b, weights_a, weights_b, directions))
    alike = measure_sliced_distance(points_a, points_b, num_directions=11, seed=seed)
    assert alike == pytest.approx(measure_slowly(points_a, points_b, None, None, directions))


def test_both_sliced_forms_are_the_same():
    generator = np.random.default_rng(0)
    points, weights = generator.normal(size=(40, 6)), draw_weights(generator, 3, 40)
    table = measure_line_distances(weights, project_points(points, 64, seed=4))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        direct = measure_sliced_distance(points, points, weights[a], weights[b], seed=4)
        assert table[a, b] == table[b, a] == pytest.approx(direct)
    assert (np.diag(table) == 0).all()


def test_a_shift_is_its_length_times_the_mean_cosine():
    points = np.random.default_rng(0).normal(size=(50, 3))
    shift = measure_sliced_distance(points, points + np.array([5, 0, 0]), num_directions=4096)
    assert shift == pytest.approx(5 / 2, rel=0.05)  # in three dimensions a coordinate is uniform


def test_directions_depend_on_the_seed_alone():
    points = np.random.default_rng(0).normal(size=(9, 4))
    first, again, other = (list(project_points(points, 20, seed)) for seed in (1, 1, 2))
    assert len(first) == 20
    assert all((a[1] == b[1]).all() for a, b in zip(first, again, strict=True))
    assert not any((a[1] == b[1]).all() for a, b in zip(first, other, strict=True))


def test_what_is_empty_has_no_distance():
    points = np.ones((3, 2))
    assert np.isnan(measure_sliced_distance(points, points[:0]))
    assert np.isnan(measure_sliced_distance(points, points, np.zeros(3)))
    nothing = measure_line_distances(np.zeros((2, 3)), [sort_positions(np.arange(3))])
    assert np.isnan(nothing).all()
    null = estimate_null_distances(np.array([[1, 2], [0, 0]]), {"line": [sort_positions(np.arange(2))]})
    assert np.isnan(null["line"]).all()


def draw_null_slowly(counts, lines, num_draws):
    tables = stats.random_table(counts.sum(1), counts.sum(0))
    draws = tables.rvs(size=num_draws, random_state=np.random.default_rng(5))
    return measure_line_distances(draws, lines)


@pytest.mark.parametrize("scale", [1, 40], ids=["every cut", "some cuts"])
def test_nulls_are_means_over_random_tables(scale):
    generator = np.random.default_rng(1)
    counts = generator.poisson(scale * np.outer([0.1, 1, 3, 6], 5 / np.arange(1, 31)))
    assert (counts.sum() > wasserstein._EXACT_TOTAL) == (scale > 1)
    lines = {
        "rank": [sort_positions(np.arange(30))],
        "space": list(project_points(generator.normal(size=(30, 3)), 5)),
    }
    nulls = estimate_null_distances(counts, lines, num_draws=1000)
    pairs = np.triu_indices(4, 1)
    for name, own in lines.items():
        draws = draw_null_slowly(counts, own, 1000)[:, *pairs]
        error = draws.std(0) / np.sqrt(1000) * np.sqrt(2)  # both sides are drawn
        assert (np.abs(nulls[name][pairs] - draws.mean(0)) < 4 * error).all()
        assert (draws.mean(0) > 20 * error / np.sqrt(2)).all()


def test_nulls_of_pairs_on_two_points_are_exact():
    # one of four pairs is of the first type; it is of the first expert or of the second with probability 1/2
    counts = np.array([[1, 1], [0, 2]])
    null = estimate_null_distances(counts, {"line": [sort_positions(np.array([0.0, 3.0]))]}, num_draws=20)
    assert null["line"][0, 1] == pytest.approx(3 / 2)


def test_cuts_may_be_few():
    """The curve between cuts is as good as at them: fewer cuts change the null by a small part of a percent."""
    generator = np.random.default_rng(2)
    counts = generator.multinomial(20_000, 1 / np.arange(1, 401) / np.sum(1 / np.arange(1, 401)), 3)
    lines = {"line": [sort_positions(np.arange(400))]}
    fine = draw_null_slowly(counts, lines["line"], 600).mean(0)[0, 1]
    assert estimate_null_distances(counts, lines, 600)["line"][0, 1] == pytest.approx(fine, rel=0.08)
    normal = np.cumsum(counts.sum(0)) / counts.sum()
    closed = np.sqrt(2 / np.pi * 2 / 20_000 * normal * (1 - normal))[:-1].sum()
    assert estimate_null_distances(counts, lines, 600)["line"][0, 1] == pytest.approx(closed, rel=0.08)
