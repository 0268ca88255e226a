import itertools

import numpy as np
import pytest
from scipy import stats

from hmoe.statistics.grouped_tables import (
    compute_draw_tail,
    compute_flip_statistics,
    count_label_arrangements,
    draw_independent_information,
    draw_shuffled_information,
)
from hmoe.statistics.information import compute_mutual_information


def test_p_counts_what_was_seen():
    assert compute_draw_tail(2.0, np.array([1.0, 2.0, 3.0])) == 0.75
    assert compute_draw_tail(4.0, np.zeros(19)) == 0.05
    assert compute_draw_tail(0.3, np.array([0.1 + 0.2, 0.1])) == pytest.approx(2 / 3)


@pytest.mark.parametrize("sizes", [[3, 3], [2, 3], [1, 1, 2], [4]])
def test_arrangements_are_counted(sizes):
    labels = [i for i, size in enumerate(sizes) for _ in range(size)]
    partitions = {
        frozenset(frozenset(np.flatnonzero(np.array(order) == i).tolist()) for i in range(len(sizes)))
        for order in set(itertools.permutations(labels))
    }
    assert count_label_arrangements(sizes) == pytest.approx(len(partitions))
    assert count_label_arrangements([1000] * 9) > 1e300


def test_shuffled_labels_give_what_all_orders_give():
    cells = np.array([[[9, 1]], [[5, 5]], [[2, 8]], [[4, 4]]])
    label = np.array([0, 0, 1, 1])
    draws = draw_shuffled_information(cells, label, 300, np.random.default_rng(0))
    assert draws.shape == (300, 1)
    expected = {
        float(compute_mutual_information(np.stack([cells[np.array(o) == i, 0].sum(0) for i in (0, 1)])))
        for o in itertools.permutations(label)
    }
    assert {round(d, 9) for d in draws[:, 0]} == {round(e, 9) for e in expected}


def test_independent_tables_are_those_of_permuted_pairs():
    table = np.array([[12, 3, 0], [0, 0, 0], [5, 9, 1]])
    draws = draw_independent_information(table, 2000, np.random.default_rng(0))
    rows = np.repeat([0, 0, 0, 2, 2, 2], table[[0, 2]].ravel())
    columns = np.repeat([0, 1, 2, 0, 1, 2], table[[0, 2]].ravel())
    generator = np.random.default_rng(1)
    permuted = np.zeros((2000, 3, 3), np.int64)
    for draw in permuted:
        np.add.at(draw, (rows, generator.permutation(columns)), 1)
    assert stats.ks_2samp(draws, compute_mutual_information(permuted)).pvalue > 0.001
    assert np.isnan(draw_independent_information(np.zeros((2, 2), np.int64), 3, generator)).all()


def test_phi_squared_is_pearsons_and_flips_are_of_groups():
    draw = np.random.default_rng(0)
    tables = draw.poisson(3, (6, 2, 3, 4))
    seen, flipped = compute_flip_statistics(tables, 64, np.random.default_rng(5))
    signs = np.random.default_rng(5).choice([-1.0, 1.0], (64, 6))
    for i in range(2):
        total = tables[:, i].sum(0)
        chi = stats.chi2_contingency(total, correction=False)
        assert seen[i] == pytest.approx(chi.statistic / total.sum())
        rows, columns = total.sum(1) / total.sum(), total.sum(0) / total.sum()
        moves = [
            t - np.outer(t.sum(1), columns) - np.outer(rows, t.sum(0)) + t.sum() * np.outer(rows, columns)
            for t in tables[:, i]
        ]
        for place in (0, 17):
            move = sum(s * m for s, m in zip(signs[place], moves, strict=True))
            expected = (move**2 / chi.expected_freq).sum() / total.sum()
            assert flipped[place, i] == pytest.approx(expected)


def test_flips_of_empty_tables_and_classes():
    tables = np.zeros((4, 2, 2, 3), np.int64)
    tables[:, 1, 0] = 5
    seen, flipped = compute_flip_statistics(tables, 10, np.random.default_rng(0))
    assert seen.tolist() == pytest.approx([0, 0])
    assert np.isfinite(flipped).all()
