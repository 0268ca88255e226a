"""Mantel's test: whether things that differ little in a value lie near each other, by all orders of these things."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hmoe.statistics.jackknife import Values

MOST_EXACT = 8  # things, up to which every order is tried
RANDOM_ORDERS = 9_999
_ORDERS_AT_ONCE = 2_000
_ROUNDING = 1e-9  # relative: what varies less does not vary


@dataclass(frozen=True)
class MantelTest:
    """How distances go with differences in a value; one-sided, for a positive association.

    Attributes:
        correlation: Pearson's, between the distances and the differences of all pairs; the mean over layers.
        tail: share of all orders of the values with at least this correlation: p of "near in value, near in
            distance". Two orders that mirror each other may have the same differences, so it is often 2 in all orders
            at the least.
        num_orders: that were tried, the observed one included: all of them up to 8 things, else 10,000.
        num_compared: things that took part.
        num_layers: matrices that took part.
    """

    correlation: float
    tail: float
    num_orders: int
    num_compared: int
    num_layers: int


def list_compared(distances: Values) -> npt.NDArray[np.int64]:
    """Return the things that have a distance to another in any layer (layers, things, things)."""
    apart = ~np.eye(distances.shape[-1], dtype=bool)
    return np.flatnonzero((np.isfinite(distances) & apart).any((0, 2)))


def run_mantel_test(values: npt.NDArray[np.floating], distances: Values, seed: int = 0) -> MantelTest | None:
    """Return the test of |value - value| against distances, or None where nothing can be said.

    Several layers are tested together: the statistic is the mean of their correlations, and an order changes the
    values of the things in all layers alike, since a thing has the same value in each. Layers in which fewer than three
    things have distances, or where these do not vary, take no part.

    Args:
        values: of the things; for experts their widths.
        distances: (layers, things, things), symmetric, NaN where there is none.
        seed: of the random orders.

    Returns:
        The test, or None if fewer than three things have distances, or if values or distances do not vary.
    """
    compared = list_compared(distances)
    if len(compared) < 3 or np.ptp(values[compared]) == 0:
        return None
    values, distances = values[compared], distances[:, compared][:, :, compared]
    usable = [layer for layer in distances if len(list_compared(layer[None])) >= 3 and _does_vary(layer)]
    if not usable:
        return None
    statistics = np.concatenate(
        [_correlate_orders(values, usable, o) for o in _iterate_orders(len(values), seed)]
    )
    observed = statistics[0]
    reached = int((statistics >= observed - _ROUNDING).sum())
    return MantelTest(float(observed), reached / len(statistics), len(statistics), len(values), len(usable))


def remove_expected(distances: Values, expected: Values) -> Values:
    """Return what distances have beyond the expected ones: residuals of each layer's regression on them."""
    residuals = np.full_like(distances, np.nan)
    for layer, (distance, null) in enumerate(zip(distances, expected, strict=True)):
        known = np.isfinite(distance) & np.isfinite(null) & ~np.eye(len(distance), dtype=bool)
        if not known.any():
            continue
        centred, regressor = (matrix[known] - matrix[known].mean() for matrix in (distance, null))
        square = float(regressor @ regressor)
        varies = square > (_ROUNDING * np.abs(null[known]).max()) ** 2 * known.sum()
        slope = float(regressor @ centred) / square if varies else 0.0
        residual = centred - slope * regressor
        # what the regression leaves by rounding alone must not be ranked
        residual[np.abs(residual) <= _ROUNDING * np.abs(distance[known]).max()] = 0
        residuals[layer][known] = residual
    return residuals


def _does_vary(distance: Values) -> bool:
    pairs = distance[np.triu_indices(len(distance), 1)]
    pairs = pairs[np.isfinite(pairs)]
    return bool(np.ptp(pairs) > _ROUNDING * np.abs(pairs).max())


def _iterate_orders(count: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield orders in the rows of tables, the given one first."""
    if count <= MOST_EXACT:
        orders = np.array(list(itertools.permutations(range(count))))
    else:
        generator = np.random.default_rng(seed)
        rest = np.tile(np.arange(count), (RANDOM_ORDERS, 1))
        orders = np.concatenate([np.arange(count)[None], generator.permuted(rest, axis=1)])
    for start in range(0, len(orders), _ORDERS_AT_ONCE):
        yield orders[start : start + _ORDERS_AT_ONCE]


def _correlate_orders(
    values: npt.NDArray[np.floating], layers: list[Values], orders: npt.NDArray[np.int64]
) -> Values:
    """Return the mean over layers of each order's correlation; 0 for one in which differences do not vary."""
    rows, columns = np.triu_indices(len(values), 1)
    ordered = values[orders]
    differences = np.abs(ordered[:, rows] - ordered[:, columns])
    total = np.zeros(len(orders))
    for layer in layers:
        distance = layer[rows, columns]
        known = np.isfinite(distance)
        centred = distance[known] - distance[known].mean()
        own = differences if known.all() else differences[:, known]
        varies = np.ptp(own, axis=1) > 0
        own = own - own.mean(1, keepdims=True)
        spread = np.sqrt(np.square(own).sum(1) * (centred @ centred))
        total += np.divide(own @ centred, spread, out=np.zeros(len(orders)), where=varies)
    return total / len(layers)
