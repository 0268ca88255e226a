"""Distances between distributions: how far their mass would have to be moved at least, on a line or in a space.

On a line the Wasserstein-1 distance is the area between the two cumulative distributions. In a space it is taken on
the lines of fixed random directions and averaged (sliced); a direction is a unit vector drawn uniformly.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from hmoe.statistics.jackknife import Values

Table = npt.NDArray[Any]
Line = tuple[npt.NDArray[np.int64], Values]  # the order of points on it, and the gaps between neighbours

_DIRECTIONS_AT_ONCE = 8
_EXACT_TOTAL = 512  # up to so many pairs every cut has a null of its own
_CUTS, _END_CUTS = 385, 33


def sort_positions(positions: Table) -> Line:
    """Return the line on which points have these positions."""
    order = np.argsort(positions, kind="stable")
    return order, np.diff(np.asarray(positions, dtype=np.float64)[order])


def project_points(points: Table, num_directions: int = 64, seed: int = 0) -> Iterator[Line]:
    """Yield the lines of random directions, of points in the rows; the same ones for the same seed."""
    directions = _draw_directions(points.shape[1], num_directions, seed)
    for start in range(0, num_directions, _DIRECTIONS_AT_ONCE):
        projected = directions[start : start + _DIRECTIONS_AT_ONCE] @ np.asarray(points, dtype=np.float64).T
        yield from map(sort_positions, projected)


def measure_line_distances(weights: Table, lines: Iterable[Line]) -> Values:
    """Return the distances between all pairs of distributions over the same points, averaged over lines.

    Args:
        weights: of each point in each distribution (..., distributions, points); they need not sum to 1.
        lines: on which the points lie.

    Returns:
        (..., distributions, distributions), symmetric; NaN beside a distribution without weight.
    """
    from scipy.spatial.distance import pdist, squareform  # noqa: PLC0415 - optional extra

    num_points = weights.shape[-1]
    groups = weights.reshape(-1, weights.shape[-2], num_points)
    totals = groups.sum(-1)
    distances = np.full((*totals.shape, totals.shape[1]), np.nan)
    known = [np.flatnonzero(total > 0) for total in totals]
    shares = [
        group[rows] / group[rows].sum(-1, keepdims=True) for group, rows in zip(groups, known, strict=True)
    ]
    sums = [np.zeros(len(rows) * (len(rows) - 1) // 2) for rows in known]
    num_lines = 0
    for order, gaps in lines:
        num_lines += 1
        for group, share in enumerate(shares):
            if len(share) > 1 and num_points > 1:
                cumulative = np.cumsum(share[:, order[:-1]], axis=1)
                sums[group] += pdist(np.multiply(cumulative, gaps, out=cumulative), "cityblock")
    for group, (rows, total) in enumerate(zip(known, sums, strict=True)):
        if len(rows):
            distances[group][np.ix_(rows, rows)] = squareform(total / num_lines) if len(rows) > 1 else 0.0
    return distances.reshape(*weights.shape[:-1], weights.shape[-2])


def estimate_null_distances(
    counts: Table, lines_by_name: dict[str, Iterable[Line]], num_draws: int = 200, seed: int = 0
) -> dict[str, Values]:
    """Return the mean distances when whole counts are dealt out at random, with the same sums by row and by column.

    Such a table is a random order of all that was counted. Whatever the order of the points on a line, those before
    a cut are then so many of all, drawn at random, and the expected gap between two cumulative distributions there
    depends on how many these are, and on nothing else. So one curve over the cuts, the mean over `num_draws` tables
    (`scipy.stats.random_table`, with merged columns where there are many), serves all lines.

    Args:
        counts: (distributions, points), whole numbers.
        lines_by_name: sets of lines over which distances are averaged, as for `measure_line_distances`.
        num_draws: random tables.
        seed: of the draws.
    """
    from scipy.spatial.distance import squareform  # noqa: PLC0415 - optional extra

    size = len(counts)
    nothing = np.full((size, size), np.nan)
    row_totals = counts.sum(1)
    known = np.flatnonzero(row_totals > 0)
    if len(known) < 2:
        return dict.fromkeys(lines_by_name, nothing)
    cuts = _choose_cuts(int(row_totals.sum()))
    curves = _draw_null_curves(row_totals[known], cuts, num_draws, seed)
    column_totals = counts.sum(0)
    nulls = {}
    for name, lines in lines_by_name.items():
        nulls[name] = nothing.copy()
        nulls[name][np.ix_(known, known)] = squareform(curves @ _spread_gaps(column_totals, lines, cuts))
    return nulls


def measure_sliced_distance(
    points_a: Table,
    points_b: Table,
    weights_a: Table | None = None,
    weights_b: Table | None = None,
    num_directions: int = 64,
    seed: int = 0,
) -> float:
    """Return the sliced distance between two sets of points in the rows, which may differ in size.

    Args:
        points_a, points_b: (points, dimensions).
        weights_a, weights_b: of the points, not negative; None weighs all alike.
        num_directions: random directions, over which the distance is averaged.
        seed: of the directions: distances compare only if they have it in common.

    Returns:
        The distance, NaN if a set is empty or has no weight.
    """
    masses = [
        np.ones(len(points)) if weights is None else np.asarray(weights, dtype=np.float64)
        for points, weights in ((points_a, weights_a), (points_b, weights_b))
    ]
    if not all(mass.sum() > 0 for mass in masses):
        return float("nan")
    signed = np.concatenate([masses[0] / masses[0].sum(), -masses[1] / masses[1].sum()])
    directions = _draw_directions(points_a.shape[1], num_directions, seed)
    total = 0.0
    for start in range(0, num_directions, _DIRECTIONS_AT_ONCE):
        chunk = directions[start : start + _DIRECTIONS_AT_ONCE]
        projected = np.concatenate(
            [chunk @ np.asarray(points, np.float64).T for points in (points_a, points_b)], 1
        )
        order = np.argsort(projected, axis=1)
        gaps = np.diff(np.take_along_axis(projected, order, axis=1), axis=1)
        total += float((np.abs(np.cumsum(signed[order], axis=1)[:, :-1]) * gaps).sum())
    return total / num_directions


def _draw_directions(num_dimensions: int, num_directions: int, seed: int) -> Values:
    directions = np.random.default_rng(seed).standard_normal((num_directions, num_dimensions))
    units: Values = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    return units


def _choose_cuts(total: int) -> npt.NDArray[np.int64]:
    """Return where to cut a random order of so many: everywhere, or closer near the ends, where curves are steep."""
    if total <= _EXACT_TOTAL:
        return np.arange(total + 1)
    ends = np.arange(_END_CUTS)
    inner = np.rint(total * np.sin(np.linspace(0, np.pi / 2, _CUTS)) ** 2).astype(np.int64)
    return np.unique(np.concatenate([ends, inner, total - ends]))


def _draw_null_curves(totals: Table, cuts: Table, num_draws: int, seed: int) -> Values:
    """Return, for each pair of rows, the mean gap between their cumulative shares at each cut."""
    from scipy.stats import random_table  # noqa: PLC0415 - optional extra

    pairs = np.triu_indices(len(totals), 1)
    curves = np.zeros((len(pairs[0]), len(cuts)))
    tables = random_table(totals, np.diff(cuts))
    generator = np.random.default_rng(seed)
    for _ in range(num_draws):
        table = tables.rvs(method="patefield", random_state=generator)
        shares = np.cumsum(table, axis=1) / totals[:, None]
        curves[:, 1:] += np.abs(shares[pairs[0]] - shares[pairs[1]])
    return curves / num_draws


def _spread_gaps(column_totals: Table, lines: Iterable[Line], cuts: Table) -> Values:
    """Return how much length lies over each cut, averaged over lines; between two cuts it is shared by them.

    Linear in the angle whose squared sine is the share before the cut: in it curves are smooth up to their ends.
    """
    total = int(column_totals.sum())
    angles = np.arcsin(np.sqrt(cuts / total))
    lengths = np.zeros(len(cuts))
    num_lines = 0
    for order, gaps in lines:
        num_lines += 1
        before = np.arcsin(np.sqrt(np.cumsum(column_totals[order[:-1]]) / total))
        right = np.clip(np.searchsorted(angles, before, side="left"), 1, len(cuts) - 1)
        part = (before - angles[right - 1]) / (angles[right] - angles[right - 1])
        lengths += np.bincount(right, gaps * part, len(cuts))
        lengths += np.bincount(right - 1, gaps * (1 - part), len(cuts))
    return lengths / num_lines
