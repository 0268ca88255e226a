"""Activated units under random routing: experts permuted among the token-expert pairs of a layer."""

from collections.abc import Iterator, Sequence
from functools import reduce
from math import gcd

import numpy as np

from hmoe.analyze.tally import Tally
from hmoe.analyze.traced_text import Floats, Ints

NUM_DRAWS = 200
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


def draw_type_units(tally: Tally, types: Ints, seed: int) -> Iterator[list[Floats]]:
    """Yield tables of the units that all tokens of each chosen type activated, layer by layer (draws, types).

    Each type keeps its pairs and each expert its total. Together they are NUM_DRAWS draws.
    """
    rng = np.random.default_rng(seed)
    tables = [sum_by_width(tally, layer, types) for layer in range(len(tally.blocks))]
    cells = max(1, len(tables[0][0]) * (len(types) + 1))
    chunk = int(np.clip(_MOST_CELLS // cells, 1, NUM_DRAWS))
    for begin in range(0, NUM_DRAWS, chunk):
        num_draws = min(chunk, NUM_DRAWS - begin)
        yield [_draw_units(widths, pairs, num_draws, rng) for widths, pairs in tables]


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

    A token keeps how many experts it has; each is drawn with the probability that the pairs of the layer give it,
    independently of the others: of many thousands of pairs, drawing with or without putting back is the same. The sum
    of so many widths is drawn from its exact distribution, cut into 2**14 equal parts.

    Args:
        tally: pairs of all tokens, for the experts' totals.
        num_experts_ZT: experts of each of the tokens, by layer.
        seed: of the draws.
    """

    def __init__(self, tally: Tally, num_experts_ZT: Ints, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        width_E = np.array(tally.widths)
        self._layers = []
        for layer, count_T in enumerate(num_experts_ZT):
            counts, place_T = np.unique(count_T, return_inverse=True)
            sums = tabulate_width_sums(width_E, tally.pairs[layer].sum(1), counts.tolist())
            self._layers.append((sums, place_T))

    def draw(self) -> Ints:
        """Return the units of one draw, by layer and token."""
        return np.stack([
            sums[place_T, self._rng.integers(0, _NUM_QUANTILES, len(place_T), dtype=np.uint16)]
            for sums, place_T in self._layers
        ])  # fmt: skip


def tabulate_width_sums(width_E: Ints, pairs_E: Ints, counts: Sequence[int]) -> Ints:
    """Return equally likely values of the sum of so many widths, each drawn by pairs (counts, 2**14)."""
    step = max(1, reduce(gcd, width_E.tolist(), 0))
    steps, place_E = np.unique(width_E // step, return_inverse=True)
    share = np.bincount(place_E, pairs_E) / max(1, pairs_E.sum())
    level = (np.arange(_NUM_QUANTILES) + 0.5) / _NUM_QUANTILES
    probability, tables = np.ones(1), {}
    for count in range(max(counts, default=0) + 1):
        if count in counts:
            sums = np.searchsorted(np.cumsum(probability), level * probability.sum())
            tables[count] = np.minimum(sums, len(probability) - 1) * step
        longer = np.zeros(len(probability) + int(steps.max()))
        for width, part in zip(steps, share, strict=True):
            longer[width : width + len(probability)] += part * probability
        probability = longer
    return np.stack([tables[count] for count in counts]).astype(np.int32)
