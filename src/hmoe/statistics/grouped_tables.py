"""Is a table of counts more than chance: tests that hold when counts of a group depend on each other."""

import math
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from hmoe.statistics.information import compute_mutual_information

Values = npt.NDArray[np.float64]
_ROUNDING = 1e-12  # relative: draws that differ by less from what was seen are as large
FEWEST_ARRANGEMENTS = 20  # with fewer no p value can be 5% or less


def compute_draw_tail(seen: float, draws: Values) -> float:
    """Return (1 + draws at least as large as what was seen) / (1 + draws)."""
    return (1 + int((draws >= seen - _ROUNDING * max(abs(seen), 1e-300)).sum())) / (1 + len(draws))


def count_label_arrangements(num_members: list[int]) -> float:
    """Return in how many ways units can be divided into groups of these sizes, groups of a size being alike."""
    logs = math.lgamma(sum(num_members) + 1) - sum(math.lgamma(n + 1) for n in num_members)
    logs -= sum(math.lgamma(count + 1) for count in Counter(num_members).values())
    return math.exp(min(logs, 700.0))


def draw_shuffled_information(
    cells: npt.NDArray[Any], label: npt.NDArray[np.int64], num_draws: int, generator: np.random.Generator
) -> Values:
    """Return mutual information of labels and columns after labels were shuffled over whole units, in bits.

    Args:
        cells: counts of each unit (units, tables, columns); a unit's label is the same in all tables.
        label: of each unit, from 0.
        num_draws: shuffles.
        generator: of the shuffles.

    Returns:
        Bits (draws, tables).
    """
    bits = []
    for _ in range(num_draws):
        sums = np.zeros((int(label.max()) + 1, *cells.shape[1:]), np.int64)
        np.add.at(sums, generator.permutation(label), cells)
        bits.append(compute_mutual_information(sums.swapaxes(0, 1)))
    return np.stack(bits)


def draw_independent_information(
    table: npt.NDArray[np.int64], num_draws: int, generator: np.random.Generator
) -> Values:
    """Return mutual information of tables with the same sums of rows and columns, exactly as by permuting, in bits."""
    from scipy import stats  # noqa: PLC0415 - an extra

    rows, columns = table.sum(1), table.sum(0)
    if not rows.sum():
        return np.full(num_draws, np.nan)
    law = stats.random_table(rows[rows > 0], columns[columns > 0], seed=generator)
    return compute_mutual_information(law.rvs(num_draws, method="patefield"))


def compute_flip_statistics(
    tables: npt.NDArray[Any], num_draws: int, generator: np.random.Generator
) -> tuple[Values, Values]:
    """Return what rows and columns tell of each other as Pearson's phi^2, and the same with signs of groups flipped.

    A group g moves the table away from independence by U_g, the sum over its counts of (own row - share of rows)
    (own column - share of columns)'; phi^2 = sum (sum_g U_g)^2 / expected / N. If rows and columns are independent
    given the group, and what a group has of either is independent, U_g may as well have the other sign, whatever
    the counts of a group have in common (a wild bootstrap by groups with the null imposed, Cameron, Gelbach and
    Miller 2008). Flipped tables have the same sums of rows and columns.

    Args:
        tables: counts (groups, tables, rows, columns).
        num_draws: flips; a draw has the same ones in all tables.
        generator: of the flips.

    Returns:
        phi^2 (tables) and (draws, tables); 0 for tables that are empty.
    """
    counts = np.asarray(tables, np.float64)
    row_share = counts.sum((0, 3)) / np.maximum(counts.sum((0, 2, 3)), 1)[:, None]
    column_share = counts.sum((0, 2)) / np.maximum(counts.sum((0, 2, 3)), 1)[:, None]
    totals = counts.sum((2, 3))[:, :, None, None]
    rows, columns = counts.sum(3)[..., None], counts.sum(2)[:, :, None, :]
    row_share_, column_share_ = row_share[None, :, :, None], column_share[None, :, None, :]
    expected = row_share_ * column_share_
    moves = counts - rows * column_share_ - row_share_ * columns + totals * expected
    scale = np.where(expected > 0, np.sqrt(expected), np.inf) * np.maximum(totals.sum(0), 1)
    scaled = (moves / scale).reshape(*moves.shape[:2], -1)
    signs = generator.choice([-1.0, 1.0], (num_draws, len(counts)))
    return np.square(scaled.sum(0)).sum(-1), np.square(np.einsum("dg,gtc->dtc", signs, scaled)).sum(-1)
