"""Linear centred kernel alignment (Kornblith et al. 2019): how alike two representations of the same things are.

With Y_a, Y_b (rows, columns), each column's mean taken off, it is |Y_a' Y_b|^2 / (|Y_a' Y_a| |Y_b' Y_b|) in Frobenius
norms: 1 for representations that are equal up to rotation, shift and scale. It is never negative, and for few rows and
many columns it is large by chance, so that it needs its null beside it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hmoe.statistics.jackknife import Values

Table = npt.NDArray[Any]
_TINY = 1e-12  # relative: what is left of columns that are constant, after their mean is taken off
_NUMBERS_AT_ONCE = 2**22  # of products of rows


def compute_linear_cka(first: Table, second: Table) -> float:
    """Return the linear CKA of two matrices with the same rows; NaN where one of them does not vary."""
    return float(compare_representations([first, second])[0, 1])


def compare_representations(representations: Sequence[Table]) -> Values:
    """Return the linear CKA of every two matrices (n, n); NaN where one of them does not vary.

    Through products of rows or of columns, whichever are fewer operations: both give the same numbers.
    """
    size = len(representations)
    centred = [_centre(matrix) for matrix in representations]
    if not centred:
        return np.zeros((0, 0))
    num_rows = len(centred[0])
    num_columns = [matrix.shape[1] for matrix in centred]
    # <Y_a Y_a', Y_b Y_b'> = |Y_a' Y_b|^2, and rows need one product a matrix where columns need one a pair.
    by_rows = num_rows * (sum(num_columns) + size * size) <= sum(num_columns) ** 2 / 2
    products = _multiply_by_rows(centred) if by_rows else _multiply_by_columns(centred)
    norm = np.sqrt(np.diag(products))
    known = norm > 0
    both = np.ix_(known, known)
    ckas = np.full((size, size), np.nan)
    # The inequality of Cauchy and Schwarz, up to rounding.
    ckas[both] = np.minimum(products[both] / np.outer(norm[known], norm[known]), 1.0)
    return ckas


def _multiply_by_rows(centred: Sequence[Table]) -> Values:
    """Return the products of every two kernels Y Y', a band of rows of all kernels after another."""
    size, num_rows = len(centred), len(centred[0])
    products = np.zeros((size, size))
    band = max(1, _NUMBERS_AT_ONCE // max(1, size * num_rows))
    for start in range(0, num_rows, band):
        kernels = np.stack([(matrix[start : start + band] @ matrix.T).ravel() for matrix in centred])
        products += kernels @ kernels.T
    return products


def _multiply_by_columns(centred: Sequence[Table]) -> Values:
    products = np.zeros((len(centred), len(centred)))
    for i, first in enumerate(centred):
        for j, second in enumerate(centred[: i + 1]):
            squares = np.square(first.T @ second)
            products[i, j] = products[j, i] = squares.sum(dtype=np.float64)
    return products


def _centre(matrix: Table) -> Table:
    """Take off the means of columns and bring the largest number to 1; what is mere rounding becomes 0."""
    floats = matrix if np.issubdtype(matrix.dtype, np.floating) else matrix.astype(np.float64)
    if not floats.size:
        return floats
    largest = np.abs(floats).max(0)
    # In double precision: a sum of many single numbers leaves more of a constant than one rounding.
    centred: Table = floats - floats.mean(0, dtype=np.float64).astype(floats.dtype)
    spread = np.abs(centred).max(0)
    is_rounding = spread <= largest * max(_TINY, 4 * float(np.finfo(floats.dtype).eps))
    scale = np.where(is_rounding, 0.0, spread).max()
    # Squares of squares follow: without a scale very small and very large numbers would not have any.
    return (
        np.where(is_rounding, 0.0, centred / scale).astype(floats.dtype) if scale else np.zeros_like(centred)
    )
