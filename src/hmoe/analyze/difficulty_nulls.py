"""Activated units under random routing: experts permuted among the token-expert pairs of a layer."""

from collections.abc import Iterator
from functools import reduce
from math import gcd

import numpy as np

from hmoe.analyze.count_null import fit_weights
from hmoe.analyze.tally import Tally
from hmoe.analyze.traced_text import Floats, Ints

_MOST_CELLS = 2_000_000  # of tables that are drawn at one time
_NUM_QUANTILES = 1 << 14


def sum_by_width(tally: Tally, layer: int, types: Ints) -> tuple[Ints, Ints]:
    """Return the distinct widths and a layer's pairs by width and chosen type, with all other types in a last column.

    Experts of equal width may be taken together, and types that are of no interest too: draws of the smaller table are
    distributed as the same sums of draws of the larger.
    """
    widths, place_E = np.unique(tally.widths, return_inverse=True)
    pairs = np.zeros((len(widths), len(types) + 1), np.int64)
    for place, pairs_V in zip(place_E, tally.pairs[layer], strict=True):
        pairs[place, :-1] += pairs_V[types]
        pairs[place, -1] += pairs_V.sum() - pairs_V[types].sum()
    return widths, pairs


def draw_type_units(tally: Tally, types: Ints, num_draws: int, seed: int) -> Iterator[list[Floats]]:
    """Yield tables of the units that all tokens of each chosen type activated, layer by layer (draws, types).

    Each type keeps its pairs and each expert its total. Together they are `num_draws` draws.
    """
    rng = np.random.default_rng(seed)
    tables = [sum_by_width(tally, layer, types) for layer in range(len(tally.blocks))]
    cells = max(1, len(tables[0][0]) * (len(types) + 1))
    chunk = int(np.clip(_MOST_CELLS // cells, 1, num_draws))
    for begin in range(0, num_draws, chunk):
        size = min(chunk, num_draws - begin)
        yield [_draw_units(widths, pairs, size, rng) for widths, pairs in tables]


def _draw_units(widths: Ints, pairs: Ints, num_draws: int, rng: np.random.Generator) -> Floats:
    from scipy.stats import random_table  # noqa: PLC0415

    width_total, type_total = pairs.sum(1), pairs.sum(0)
    used = width_total > 0
    if used.sum() < 2:  # nothing to permute
        units = (widths * (width_total > 0)).sum() * type_total[:-1]
        return np.tile(units.astype(np.float64), (num_draws, 1))
    drawn = random_table.rvs(
        width_total[used], type_total, size=num_draws, method="patefield", random_state=rng
    )
    return np.asarray(np.einsum("w,dwv->dv", widths[used].astype(np.float64), drawn[:, :, :-1]))


class TokenUnitsNull:
    """Draws the units that each of some tokens activates if its experts are drawn without regard to it.

    A token keeps how many experts it has, and they are different ones. Of all such draws it is the one without further
    structure (conditional Poisson sampling): a set of experts has a probability proportional to the product of their
    weights, and the weights are those by which experts have their share of the pairs. Units are drawn from the exact
    distribution of the sum of their widths, cut into 2**14 equal parts.

    Args:
        tally: pairs of all tokens, for the experts' shares.
        num_experts_ZT: experts of each of the tokens, by layer.
        seed: of the draws.
    """

    def __init__(self, tally: Tally, num_experts_ZT: Ints, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        width_E = np.array(tally.widths)
        self._layers = []
        for layer, count_T in enumerate(num_experts_ZT):
            counts, place_T, tokens = np.unique(count_T, return_inverse=True, return_counts=True)
            weight_E = fit_weights(tally.pairs[layer].sum(1), counts, tokens)
            self._layers.append((tabulate_width_sums(width_E, weight_E, counts), place_T))

    def draw(self) -> Ints:
        """Return the units of one draw, by layer and token."""
        return np.stack([
            sums[place_T, self._rng.integers(0, _NUM_QUANTILES, len(place_T), dtype=np.uint16)]
            for sums, place_T in self._layers
        ])  # fmt: skip


def tabulate_width_sums(width_E: Ints, weight_E: Floats, counts: Ints) -> Ints:
    """Return equally likely values of the sum of the widths of so many different experts (counts, 2**14)."""
    step = max(1, reduce(gcd, width_E.tolist(), 0))
    most, steps_E = int(counts.max(initial=0)), width_E // step
    sums_CU = np.zeros(
        (most + 1, int(steps_E.sum()) + 1)
    )  # products of weights over sets, by their size and width
    sums_CU[0, 0] = 1
    for steps, weight in zip(steps_E.tolist(), weight_E, strict=True):
        sums_CU[1:, steps:] += weight * sums_CU[:-1, : sums_CU.shape[1] - steps]
    level = (np.arange(_NUM_QUANTILES) + 0.5) / _NUM_QUANTILES
    tables = np.zeros((len(counts), _NUM_QUANTILES), np.int64)
    for place, count in enumerate(counts):
        below_U = np.cumsum(sums_CU[count])
        tables[place] = np.searchsorted(below_U, level * below_U[-1]) * step
    return tables
