"""Which tokens each expert likes: those that it serves more often than others, at a stated false discovery rate."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hmoe.analyze.count_null import compute_null_lifts
from hmoe.analyze.tally import Tally
from hmoe.analyze.traced_text import Floats, Ints, Row
from hmoe.errors import ConfigError
from hmoe.statistics.clustered_rates import GroupedCounts, compute_excess_tails, estimate_ratio_interval
from hmoe.statistics.false_discovery import adjust_false_discovery


@dataclass(frozen=True)
class _Candidates:
    """Pairs of an expert and a token type that are served more often than others, at the uncorrected rate.

    Attributes:
        layer, expert, token: which.
        lift, null, low, high, tail: of each.
    """

    layer: Ints
    expert: Ints
    token: Ints
    lift: Floats
    null: Floats
    low: Floats
    high: Floats
    tail: Floats

    def describe_lift(self, place: int) -> Row:
        """Return the lift of a candidate, its interval, and what it is without regard to the token."""
        high = float(self.high[place])
        return {
            "lift": float(self.lift[place]),
            "lift_low": float(self.low[place]),
            "lift_high": high if np.isfinite(high) else None,
            "lift_null": float(self.null[place]),
        }


def measure_top_tokens(
    tally: Tally,
    texts: Sequence[str],
    num_top: int = 20,
    min_count: int = 20,
    false_discovery_rate: float = 0.05,
) -> dict[str, list[Row]]:
    """Return the table `top_tokens`: for each expert of each layer the token types that it likes most.

    lift(v, e, z) = P(e | v) / P(e): pairs of e with tokens v / tokens v, by pairs of e / tokens, without separators
    and first tokens of windows, for types that occur often enough. A router that looks at how many experts a token
    takes but not at the token gives `lift_null`: 1 where all tokens take as many (top-k), more for types that take
    many (top-p). All (v, e, z) with P(e) above 0 are tested against it, and Benjamini and Hochberg's procedure keeps
    those at the false discovery rate. Rows are in the order of the lower bound of the lift's 95% interval by
    `lift_null`, places counted from 1; only lifts above `lift_null` are listed. Where the number of experts leaves no
    choice, as where one expert serves every token and a second one some, their lifts are their nulls.

    The test is stricter than the binomial one, which takes the tokens of a document as independent: p is the largest of
    the binomial p and of two that allow for dependence within documents and for the uncertainty of P(e)
    (`compute_excess_tails`). The dependence is that of the type itself, or the mean over the types of an expert if this
    is larger. What occurs in a single document is never listed, and what occurs in few hardly ever.

    Args:
        tally: of the tokens read.
        texts: of all token types.
        num_top: rows of an expert and layer at most.
        min_count: a type must occur as often.
        false_discovery_rate: share of the rows kept, before the cut at `num_top`, that may be there by chance.

    Raises:
        ConfigError: if `texts` are not those of all token types, or `num_top` or `min_count` is below 1.
    """
    if len(texts) != tally.vocab:
        raise ConfigError(f"texts: {len(texts)} for {tally.vocab} token types, must be as many")
    for name, value in (("num_top", num_top), ("min_count", min_count)):
        if value < 1:
            raise ConfigError(f"{name} = {value}: must be at least 1")
    types = np.flatnonzero(tally.types_by_fold.sum(0) >= min_count)
    layers = [_test_layer(tally, layer, types, false_discovery_rate) for layer in range(len(tally.blocks))]
    num_tests = len(types) * int((tally.pairs.sum(-1) > 0).sum())
    candidates = _Candidates(
        *(np.concatenate([getattr(c, name) for c in layers]) for name in _Candidates.__annotations__)
    )
    q = adjust_false_discovery(candidates.tail, num_tests)
    order = np.lexsort(
        (
            candidates.token,
            -candidates.lift / candidates.null,
            -candidates.low / candidates.null,
            candidates.expert,
            candidates.layer,
        )
    )
    discoveries = order[q[order] <= false_discovery_rate]
    return {"top_tokens": _list_rows(tally, texts, candidates, q, discoveries, num_top)}


def _list_rows(
    tally: Tally, texts: Sequence[str], candidates: _Candidates, q: Floats, discoveries: Ints, num_top: int
) -> list[Row]:
    """Return the first discoveries of each expert as rows."""
    type_counts = tally.types_by_fold.sum(0)
    rows: list[Row] = []
    place, previous = 0, (-1, -1)
    for i in discoveries:
        cell = (int(candidates.layer[i]), int(candidates.expert[i]))
        place = place + 1 if cell == previous else 1
        previous = cell
        if place <= num_top:
            token = int(candidates.token[i])
            rows.append(
                {
                    "layer": cell[0],
                    "expert": cell[1],
                    "width": int(tally.widths[cell[1]]),
                    "place": place,
                    "token": token,
                    "text": texts[token],
                    "count": int(type_counts[token]),
                    "pairs": int(tally.pairs[cell[0]][cell[1], token]),
                    **candidates.describe_lift(i),
                    "q": float(q[i]),
                }
            )
    return rows


def _test_layer(tally: Tally, layer: int, types: Ints, rate: float) -> _Candidates:
    """Return what is above chance in a layer by an uncorrected p up to the rate; no other can be a discovery."""
    type_counts = tally.types_by_fold[:, types]
    counts = GroupedCounts(
        tally.pairs[layer][:, types],
        type_counts.sum(0),
        tally.pair_squares[layer][:, types],
        tally.pair_products[layer][:, types],
        tally.type_squares[types],
        (type_counts > 0).sum(0),
    )
    total = _sum_folds(tally, layer)
    expert_rate = tally.pairs[layer].sum(-1) / max(int(tally.types_by_fold.sum()), 1)
    null_rate = expert_rate[:, None] * _compute_null_lifts(tally, layer, types)
    expert, column = np.nonzero((counts.rate > null_rate) & (null_rate > 0) & (null_rate < 1))
    own, own_null = counts.select(expert, column), null_rate[expert, column]
    own_rate, own_variance = expert_rate[expert], total.variance[expert]
    tail = compute_excess_tails(own, own_null, own_variance * np.square(own_null / own_rate))
    kept = np.flatnonzero(tail <= rate)
    own, own_rate, own_variance = (
        counts.select(expert[kept], column[kept]),
        own_rate[kept],
        own_variance[kept],
    )
    low, high = estimate_ratio_interval(own, own_rate, own_variance, int(total.num_groups) - 1)
    return _Candidates(
        np.full(len(kept), layer),
        expert[kept],
        types[column[kept]],
        own.rate / own_rate,
        own_null[kept] / own_rate,
        low,
        high,
        tail[kept],
    )


def _compute_null_lifts(tally: Tally, layer: int, types: Ints) -> Floats:
    """Return the lifts (experts, types) of routing that looks at how many experts a token takes, but not at it."""
    counts = np.array(sorted(tally.types_by_count), np.int64)
    tables = [tally.types_by_count[count][layer] for count in counts]
    tokens = np.array([table.sum(dtype=np.int64) for table in tables], np.int64)
    types_CV = np.stack([table[types] for table in tables]) if tables else np.zeros((0, len(types)), np.int64)
    return compute_null_lifts(tally.pairs[layer].sum(-1), counts, tokens, types_CV)


def _sum_folds(tally: Tally, layer: int) -> GroupedCounts:
    """Return each expert's pairs among all tokens, with folds as the groups."""
    pairs = tally.pairs_by_fold[:, layer].astype(np.float64)
    tokens = tally.tokens_by_fold.astype(np.float64)
    return GroupedCounts(
        pairs.sum(0),
        np.maximum(tokens.sum(), 1),
        np.square(pairs).sum(0),
        (pairs * tokens[:, None]).sum(0),
        np.maximum(np.square(tokens).sum(), 1),
        np.array(np.count_nonzero(tokens)),
    )
