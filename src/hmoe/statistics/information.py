"""Mutual information of the rows and columns of tables of counts."""

from typing import Any

import numpy as np
import numpy.typing as npt


def compute_mutual_information(
    tables: npt.NDArray[Any], is_corrected: bool = True
) -> npt.NDArray[np.float64]:
    """Return what rows and columns tell of each other, in bits.

    From entropies H of rows, columns and cells: I = H(rows) + H(columns) - H(cells). Each H is Miller-Madow corrected
    (Miller 1955, "Note on the bias of information estimates"): (m - 1) / (2 N) nats are added to the entropy of the
    relative frequencies, with N the count of all cells and m the number of values that occur. So the plain I changes by
    (rows + columns - cells that occur - 1) / (2 N ln 2) bits: independent rows and columns give about 0 on average,
    single tables also less. It is not raised to 0, which would bring the bias back.

    Args:
        tables: counts of shape (..., rows, columns).
        is_corrected: whether Miller and Madow's correction is made.

    Returns:
        Bits of shape (...); NaN where a table is empty.
    """
    counts = np.asarray(tables, np.float64)
    rows, columns = counts.sum(-1), counts.sum(-2)
    totals = rows.sum(-1)
    cells = counts.reshape(*totals.shape, counts.shape[-2] * counts.shape[-1])
    nats = _sum_n_log_n(cells) - _sum_n_log_n(rows) - _sum_n_log_n(columns) + _sum_n_log_n(totals[..., None])
    if is_corrected:
        num_rows, num_columns, num_cells = (np.count_nonzero(n, axis=-1) for n in (rows, columns, cells))
        nats = nats + (num_rows + num_columns - num_cells - 1) / 2
    bits = np.full(totals.shape, np.nan)
    np.divide(nats, totals * np.log(2), out=bits, where=totals > 0)
    return bits


def _sum_n_log_n(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return sum n ln n over the last axis; nothing for n = 0."""
    sums: npt.NDArray[np.float64] = (counts * np.log(np.where(counts > 0, counts, 1))).sum(-1)
    return sums
