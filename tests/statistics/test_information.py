import math

import numpy as np
import pytest
from scipy import stats

from hmoe.statistics.information import compute_mutual_information


def loop_information(table):
    """Miller-Madow corrected, entropy by entropy."""
    total = table.sum()
    entropies = []
    for counts in (table.sum(1), table.sum(0), table.ravel()):
        entropy = -sum(n / total * math.log2(n / total) for n in counts if n)
        entropies.append(entropy + (sum(n > 0 for n in counts) - 1) / (2 * total * math.log(2)))
    return entropies[0] + entropies[1] - entropies[2]


def test_batches_are_the_same_as_loops():
    draw = np.random.default_rng(0)
    tables = draw.poisson(1.5, (5, 10, 4, 7))
    bits = compute_mutual_information(tables)
    assert bits.shape == (5, 10)
    for place in np.ndindex(5, 10):
        assert bits[place] == pytest.approx(loop_information(tables[place]), abs=1e-12)


def test_plain_information_is_that_of_others():
    metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(1)
    for _ in range(50):
        table = draw.poisson(draw.uniform(0.5, 20), draw.integers(1, 6, 2))
        table[0, 0] += 1
        nats = metrics.mutual_info_score(None, None, contingency=table)
        bits = float(compute_mutual_information(table, is_corrected=False))
        assert bits * math.log(2) == pytest.approx(nats, abs=1e-12)


def test_correction_takes_away_what_small_samples_add():
    table = np.array([[30, 10, 20], [60, 20, 40]])
    law = stats.random_table(table.sum(1), table.sum(0), seed=0)
    draws = law.rvs(2000)
    error = compute_mutual_information(draws).std() / math.sqrt(2000)
    assert abs(compute_mutual_information(draws).mean()) < 4 * error
    assert compute_mutual_information(draws, is_corrected=False).mean() > 20 * error


def test_extremes():
    assert compute_mutual_information(np.diag([8, 8, 8, 8]), is_corrected=False) == pytest.approx(2)
    assert compute_mutual_information(np.array([[3, 5, 1]])) == pytest.approx(0, abs=1e-15)
    assert np.isnan(compute_mutual_information(np.zeros((2, 3))))
    assert compute_mutual_information(np.zeros((0, 2, 3))).shape == (0,)
