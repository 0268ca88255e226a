"""The best matching of hidden units against all permutations."""

import itertools
import math
from typing import Any

import numpy as np
import pytest

from hmoe.statistics.unit_matching import match_units


def match_slowly(first: Any, second: Any) -> float:
    smaller, larger = (first, second) if len(first) <= len(second) else (second, first)

    def cosine(u: Any, v: Any) -> float:
        norm = math.sqrt(float(u @ u)) * math.sqrt(float(v @ v))
        return float(u @ v) / norm if norm else 0.0

    return max(
        sum(cosine(u, larger[place]) for u, place in zip(smaller, places, strict=True)) / len(smaller)
        for places in itertools.permutations(range(len(larger)), len(smaller))
    )


@pytest.mark.parametrize("seed", range(50))
def test_matching_is_the_best_of_all(seed: int) -> None:
    draw = np.random.default_rng(seed)
    first, second = (draw.normal(size=(draw.integers(1, 6), 4)) for _ in range(2))
    first[draw.random(len(first)) < 0.1] = 0.0
    expected = match_slowly(first, second)
    assert match_units(first, second) == pytest.approx(expected, abs=1e-12)
    assert match_units(second, first) == pytest.approx(expected, abs=1e-12)
    scales = draw.uniform(0.1, 9, (len(first), 1))
    assert match_units(first * scales, second) == pytest.approx(expected, abs=1e-12)


def test_order_does_not_count_and_parts_are_whole() -> None:
    draw = np.random.default_rng(0)
    wide = draw.normal(size=(40, 6))
    assert match_units(wide, wide[draw.permutation(40)]) == pytest.approx(1)
    assert match_units(wide[draw.permutation(40)[:13]], wide) == pytest.approx(1)
    assert match_units(wide, -wide) < 0.9


def test_few_units_are_evenly_spread() -> None:
    draw = np.random.default_rng(1)
    first, second = draw.normal(size=(10, 5)), draw.normal(size=(12, 5))
    assert match_units(first, second, 4) == match_units(first[[0, 2, 5, 7]], second)
    assert match_units(first, second, 10) == match_units(first, second)


def test_nothing_whole_numbers_and_single_precision() -> None:
    draw = np.random.default_rng(2)
    assert math.isnan(match_units(np.zeros((0, 3)), draw.normal(size=(2, 3))))
    assert match_units(np.zeros((2, 3)), draw.normal(size=(4, 3))) == 0
    first, second = draw.integers(-4, 5, (3, 4)), draw.normal(size=(4, 4)).astype(np.float32)
    assert match_units(first, second) == pytest.approx(match_slowly(first, second.astype(float)), rel=1e-5)
