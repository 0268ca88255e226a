import itertools

import numpy as np
import pytest

from hmoe.statistics.unit_matching import match_units


@pytest.mark.parametrize("seed", range(20))
def test_equals_a_search_of_all_matchings(seed):
    draw = np.random.default_rng(seed)
    small, large = np.sort(draw.integers(1, 6, 2))
    a, b = draw.normal(size=(small, 4)), draw.normal(size=(large, 4))
    cosines = (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    best = max(
        np.mean([cosines[i, j] for i, j in enumerate(order)])
        for order in itertools.permutations(range(large), int(small))
    )
    assert match_units(a, b) == pytest.approx(best)
    assert match_units(b, a) == pytest.approx(best)


def test_the_same_units_in_another_order_and_size():
    draw = np.random.default_rng(0)
    units = draw.normal(size=(30, 12))
    scaled = units[draw.permutation(30)] * draw.uniform(0.1, 9, (30, 1))
    assert match_units(units, scaled) == pytest.approx(1)
    assert match_units(units[:7], scaled) == pytest.approx(1)
    assert match_units(units, scaled, most_units=4) == pytest.approx(1)
    other = draw.normal(size=(30, 12))
    assert match_units(units, other, most_units=29) == pytest.approx(match_units(units, other), abs=0.05)


def test_zeros_and_no_units():
    units = np.eye(3)
    assert match_units(units, np.zeros((2, 3))) == 0
    assert np.isnan(match_units(units, np.zeros((0, 3))))
