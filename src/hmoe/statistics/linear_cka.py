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


def compute_linear_cka(first: Table, second: Table) -> float:
    """Return the linear CKA of two matrices with the same rows; NaN where one of them does not vary."""
    return float(compare_representations([first, second])[0, 1])


def compare_representations(representations: Sequence[Table]) -> Values:
    """Return the linear CKA of every two matrices (n, n); NaN where one of them does not vary.

    Through products of rows or of columns, whichever are fewer: both give the same numbers.
    """
    size = len(representations)
    ckas = np.full((size, size), np.nan)
    centred = [_centre(matrix) for matrix in representations]
    num_rows = len(centred[0]) if centred else 0
    # <Y_a Y_a', Y_b Y_b'> = |Y_a' Y_b|^2, and rows need one product a matrix where columns need one a pair.
    by_rows = num_rows <= max((matrix.shape[1] for matrix in centred), default=0)
    kernels = [matrix @ matrix.T for matrix in centred] if by_rows else centred
    products = np.zeros((size, size))
    for i in range(size):
        for j in range(i + 1):
            inner = kernels[i] * kernels[j] if by_rows else np.square(kernels[i].T @ kernels[j])
            products[i, j] = products[j, i] = inner.sum(dtype=np.float64)
    norm = np.sqrt(np.diag(products))
    known = norm > 0
    both = np.ix_(known, known)
    ckas[both] = products[both] / np.outer(norm[known], norm[known])
    return ckas


def _centre(matrix: Table) -> Table:
    """Take off the means of columns; what is mere rounding becomes 0."""
    floats = matrix if np.issubdtype(matrix.dtype, np.floating) else matrix.astype(np.float64)
    largest = np.abs(floats).max(initial=0.0)
    centred: Table = floats - floats.mean(0) if len(floats) else floats
    is_rounding = np.abs(centred).max(initial=0.0) <= largest * max(_TINY, 4 * np.finfo(floats.dtype).eps)
    return np.zeros_like(centred) if is_rounding else centred
