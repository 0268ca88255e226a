"""Linear CKA against HSIC in slow loops, and what must not change it."""

from typing import Any

import numpy as np
import pytest

from hmoe.statistics import linear_cka
from hmoe.statistics.linear_cka import compare_representations, compute_linear_cka


def compute_slow_hsic(first: Any, second: Any) -> float:
    """tr(K H L H), sum by sum, with K = first first', L = second second' and H = I - 1 / n."""
    n = len(first)
    kernels = [[[sum(map(float, u * v)) for v in matrix] for u in matrix] for matrix in (first, second)]
    total = 0.0
    means = [[sum(row) / n for row in kernel] for kernel in kernels]
    for i in range(n):
        for j in range(n):
            k, other = (
                kernel[i][j] - mean[i] - mean[j] + sum(mean) / n
                for kernel, mean in zip(kernels, means, strict=True)
            )
            total += k * other
    return total


@pytest.mark.parametrize("seed", range(50))
def test_cka_is_hsic_of_linear_kernels_and_invariant(seed: int) -> None:
    draw = np.random.default_rng(seed)
    n, first_columns, second_columns = draw.integers(2, 10), *draw.integers(1, 12, 2)
    first = draw.normal(size=(n, first_columns)) + draw.normal(size=first_columns)
    second = draw.normal(size=(n, second_columns)) + first.mean(1, keepdims=True)
    cross, own = compute_slow_hsic(first, second), [compute_slow_hsic(m, m) for m in (first, second)]
    cka = compute_linear_cka(first, second)
    assert cka == pytest.approx(cross / np.sqrt(own[0] * own[1]), abs=1e-9)
    assert 0 <= cka <= 1
    rotation, _ = np.linalg.qr(draw.normal(size=(first_columns, first_columns)))
    moved = (first @ rotation) * float(10.0 ** draw.integers(-40, 40)) + 0.0
    assert compute_linear_cka(moved, second) == pytest.approx(cka, abs=1e-9)
    assert compute_linear_cka(second + 3.0, first) == pytest.approx(cka, abs=1e-9)
    assert compute_linear_cka(moved, first) == pytest.approx(1, abs=1e-9)


def test_rows_in_bands_and_columns_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    tables = [linear_cka._centre(draw.normal(size=(23, columns))) for columns in (3, 40, 1, 17)]
    monkeypatch.setattr(linear_cka, "_NUMBERS_AT_ONCE", 4 * 23 * 5)  # bands of 5, 5, 5, 5 and 3 rows
    by_rows = linear_cka._multiply_by_rows(tables)
    np.testing.assert_allclose(by_rows, linear_cka._multiply_by_columns(tables), rtol=1e-12)


@pytest.mark.parametrize("num_rows", [6, 400])  # by rows, and by columns
def test_all_pairs_are_those_of_two(num_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(1)
    tables = [draw.normal(size=(num_rows, columns)) for columns in (9, 30, 2)]
    unused = "_multiply_by_columns" if num_rows == 6 else "_multiply_by_rows"
    pairs = [[compute_linear_cka(first, second) for second in tables] for first in tables]
    monkeypatch.delattr(linear_cka, unused)
    np.testing.assert_allclose(compare_representations(tables), pairs, rtol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("num_rows", [2, 5, 5000])
def test_outputs_that_do_not_vary_have_none(num_rows: int, dtype: Any) -> None:
    """The mean of many equal numbers is not quite that number: what is left must not be compared."""
    draw = np.random.default_rng(2)
    constant = np.tile(draw.normal(size=7).astype(dtype), (num_rows, 1))
    other = draw.normal(size=(num_rows, 4)).astype(dtype)
    ckas = compare_representations([constant, other, np.zeros_like(other)])
    assert ckas[1, 1] == pytest.approx(1)
    ckas[1, 1] = np.nan
    assert np.isnan(ckas).all()


def test_few_rows_constant_columns_and_whole_numbers() -> None:
    draw = np.random.default_rng(3)
    assert np.isnan(compute_linear_cka(draw.normal(size=(1, 3)), draw.normal(size=(1, 2))))
    assert np.isnan(compute_linear_cka(np.zeros((0, 3)), np.zeros((0, 2))))
    assert compute_linear_cka(draw.normal(size=(2, 3)), draw.normal(size=(2, 5))) == pytest.approx(1)
    first, second = draw.integers(0, 9, (8, 3)), draw.normal(size=(8, 2)).astype(np.float32)
    cka = compute_linear_cka(first, second)
    level = np.full((8, 1), 1e6, np.float32)  # beside it all else would be rounding
    assert compute_linear_cka(first, np.concatenate([second, level], 1)) == pytest.approx(cka, rel=1e-5)
    assert compare_representations([]).shape == (0, 0)


@pytest.mark.parametrize("scale", [1e-18, 1e-10, 1e10, 1e18])
def test_single_precision_neither_vanishes_nor_overflows(scale: float) -> None:
    draw = np.random.default_rng(4)
    first, second = draw.normal(size=(2, 12, 5)).astype(np.float32)
    expected = compute_linear_cka(first.astype(float), second.astype(float))
    assert compute_linear_cka(first * np.float32(scale), second) == pytest.approx(expected, rel=1e-5)
