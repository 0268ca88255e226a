"""Do difficult tokens activate more? Activated units against frequency, likelihood, length and senses (figure 8)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hmoe.analyze.activation import clean_number
from hmoe.analyze.difficulty_nulls import TokenUnitsNull, draw_type_units
from hmoe.analyze.tally import Tally, divide_known
from hmoe.analyze.token_sample import TokenSample
from hmoe.analyze.traced_text import Floats, Ints, Row
from hmoe.errors import ConfigError
from hmoe.statistics.jackknife import EstimateInterval, estimate_jackknife_interval
from hmoe.statistics.rank_correlation import FeatureCorrelator

FEWEST_OCCURRENCES = 20  # of a token type that is compared
_MOST_BINS = 10
_LEAST_VARIANCE = 1e-12  # of mean squares; less is rounding
_Features = dict[str, npt.NDArray[Any]]
_Draws = tuple[int, int]  # how many, and their seed


def measure_difficulty(
    tally: Tally,
    sample: TokenSample,
    lengths_V: Ints,
    senses_V: Floats | None = None,
    frequency_V: Floats | None = None,
    num_draws: int = 200,
    seed: int = 0,
) -> dict[str, list[Row]]:
    """Return the tables difficulty, difficulty_curves and type_variance.

    difficulty: Spearman correlations of activated units, by layer and for their mean over layers (layer None). Over
    token types with at least FEWEST_OCCURRENCES tokens it is the mean units of a type with its count, mean
    likelihood, bytes and senses; over tokens, those of a sample, the units of a token with the count of its type, its
    own likelihood, bytes, place in the word and senses. Each but frequency also with frequency held fixed (`given`).
    Intervals leave out documents; types are taken as they are: the interval is for other texts, not for other
    vocabularies. Means of few tokens are inexact, and a correlation over types is therefore nearer to 0 than that of
    a longer text; the interval is for texts of this length.

    The null band holds 95% of `num_draws` draws in which experts are given to tokens at random: each token, or type,
    keeps how many it has, and each expert its share of a layer. It lies beside 0 where difficult tokens have more
    experts, and for such models tells whether these are wider too. It knows nothing of documents: where these have
    experts of their own, correlations over tokens leave it more often than in 5%, and the interval is to be trusted.

    difficulty_curves: the activated ratio in up to ten bins of each feature, x being the median in the bin.

    type_variance: how much of the variance of activated units lies within token types, and what tokens without regard
    to types would give (`null`).

    Args:
        tally: of all tokens.
        sample: of the same tokens.
        lengths_V: bytes of each token type.
        senses_V: of each token type, NaN where unknown.
        frequency_V: of each token type in some other text; by default its count in this one.
        num_draws: of random routing.
        seed: of the draws.
    """
    for name, table in (("lengths_V", lengths_V), ("senses_V", senses_V), ("frequency_V", frequency_V)):
        if table is not None and np.shape(table) != (tally.vocab,):
            shape = np.shape(table)
            raise ConfigError(f"{name}: of shape {shape}, must be ({tally.vocab},), one for each token type")
    by_type = {"bytes": np.asarray(lengths_V, float)}
    if senses_V is not None:
        by_type["senses"] = np.asarray(senses_V, float)
    fixed_V = None if frequency_V is None else np.asarray(frequency_V, float)
    features = _list_token_features(tally, sample, by_type, fixed_V)
    return {
        "difficulty": [
            *_compare_types(tally, by_type, fixed_V, (num_draws, seed)),
            *_compare_tokens(tally, sample, features, (num_draws, seed)),
        ],
        "difficulty_curves": _list_curves(tally, sample, features),
        "type_variance": _list_type_variance(tally),
    }


def _compare_types(tally: Tally, by_type: _Features, frequency_V: Floats | None, draws: _Draws) -> list[Row]:
    types = np.flatnonzero(tally.types_by_fold.sum(0) >= FEWEST_OCCURRENCES)
    chosen = {name: value_V[types] for name, value_V in by_type.items()}

    def list_features(count_V: Ints, nll_V: Floats, nll_count_V: Ints) -> _Features:
        frequency = count_V.astype(float) if frequency_V is None else frequency_V[types]
        # A type of which these documents have no token is in no comparison of theirs.
        frequency = np.where(count_V > 0, frequency, np.nan)
        return {"frequency": frequency, "nll": divide_known(nll_V, nll_count_V), **chosen}

    def correlate(count_V: Ints, units_ZV: Floats, nll_V: Floats, nll_count_V: Ints) -> Floats:
        features = list_features(count_V, nll_V, nll_count_V)
        return FeatureCorrelator(features, "frequency").correlate(
            _append_sum(units_ZV) / np.maximum(count_V, 1)
        )

    tables = [tally.types_by_fold, tally.units_by_fold, tally.nll_by_fold, tally.nll_tokens_by_fold]
    tables = [table[..., types] for table in tables]
    interval = estimate_jackknife_interval(correlate, tables)
    count_V = tables[0].sum(0)
    correlator = FeatureCorrelator(list_features(count_V, tables[2].sum(0), tables[3].sum(0)), "frequency")
    parts = []
    for units in draw_type_units(tally, types, *draws):
        rows = [*units, np.sum(units, axis=0)]
        parts.append(np.stack([correlator.correlate(drawn / count_V) for drawn in rows], axis=1))
    return _list_correlations("types", correlator, interval, np.concatenate(parts, axis=2))


def _list_token_features(
    tally: Tally, sample: TokenSample, by_type: _Features, frequency_V: Floats | None
) -> _Features:
    type_T = sample.type_T
    frequency_V = tally.types_by_fold.sum(0).astype(float) if frequency_V is None else frequency_V
    return {
        "frequency": frequency_V[type_T],
        "nll": sample.nll_T,
        "word_position": sample.word_position_T.astype(float),
        **{name: value_V[type_T] for name, value_V in by_type.items()},
    }


def _compare_tokens(tally: Tally, sample: TokenSample, features: _Features, draws: _Draws) -> list[Row]:
    # Whole numbers in the order of the values: their ranks among any documents are then counted, not sorted.
    places = {name: _number_in_order(value_T) for name, value_T in features.items()}
    units_RT = np.stack([_number_in_order(units_T) for units_T in _append_sum(sample.units_ZT)])
    fold_T = sample.document_T % tally.num_folds

    def correlate(weight_F: Ints) -> Floats:
        kept_T = weight_F[fold_T] > 0
        kept = {name: place_T[kept_T] for name, place_T in places.items()}
        return FeatureCorrelator(kept, "frequency").correlate(units_RT[:, kept_T])

    in_use = np.isin(np.arange(tally.num_folds), fold_T)
    interval = estimate_jackknife_interval(correlate, [np.diag(in_use.astype(np.int64))])
    correlator = FeatureCorrelator(places, "frequency")
    num_draws, seed = draws
    null = TokenUnitsNull(tally, sample.num_experts_ZT, seed)
    drawn = [correlator.correlate(_append_sum(null.draw())) for _ in range(num_draws)]
    return _list_correlations("tokens", correlator, interval, np.stack(drawn, axis=2))


def _list_correlations(
    over: str, correlator: FeatureCorrelator, interval: EstimateInterval, null: Floats
) -> list[Row]:
    """Return rows of correlations (questions, layers and their mean), with bands of draws (last axis)."""
    # The i-th of n draws in order has the share i / (n + 1) below it: of new draws exactly 95% fall into the band.
    bands = np.quantile(null, [0.025, 0.975], axis=-1, method="weibull")
    num_layers = null.shape[1] - 1
    return [
        {
            "layer": layer if layer < num_layers else None, "over": over, "feature": feature, "given": given,
            "correlation": clean_number(interval.value[place, layer]),
            "low": clean_number(np.maximum(interval.low[place, layer], -1)),
            "high": clean_number(np.minimum(interval.high[place, layer], 1)),
            "null_low": clean_number(bands[0, place, layer]), "null_high": clean_number(bands[1, place, layer]),
            "count": correlator.counts[place],
        }
        for layer in (num_layers, *range(num_layers))
        for place, (feature, given) in enumerate(correlator.questions)
    ]  # fmt: skip


def _append_sum(units_ZX: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return rows of all layers and, last, of their sum, whose ranks are those of the mean over layers."""
    return np.concatenate([units_ZX, units_ZX.sum(0, keepdims=True)])


def _number_in_order(values: npt.NDArray[Any]) -> Ints:
    """Return whole numbers in the order of the values, equal for equal ones, -1 for NaN."""
    known = ~np.isnan(values)
    places = np.full(len(values), -1, np.int64)
    places[known] = np.unique(values[known], return_inverse=True)[1]
    return places


def _list_curves(tally: Tally, sample: TokenSample, features: _Features) -> list[Row]:
    whole = sum(tally.widths) * len(tally.blocks)
    ratio_T = divide_known(sample.units_ZT.sum(0), whole)
    fold_T = sample.document_T % tally.num_folds
    rows = []
    for name, value_T in features.items():
        known_T = ~np.isnan(value_T)
        if not known_T.any() or not whole:
            continue
        known_value_T = value_T[known_T]
        bin_T = cut_bins(known_value_T)
        shape = (tally.num_folds, int(bin_T.max()) + 1)
        counts, sums = np.zeros(shape, np.int64), np.zeros(shape)
        np.add.at(counts, (fold_T[known_T], bin_T), 1)
        np.add.at(sums, (fold_T[known_T], bin_T), ratio_T[known_T])
        interval = estimate_jackknife_interval(divide_known, [sums, counts])
        rows += [
            {
                "feature": name, "bin": place, "x": float(np.median(known_value_T[bin_T == place])),
                "activated_ratio": clean_number(interval.value[place]), "low": clean_number(interval.low[place]),
                "high": clean_number(interval.high[place]), "count": int(counts[:, place].sum()),
            }
            for place in range(shape[1])
        ]  # fmt: skip
    return rows


def cut_bins(values: Floats) -> Ints:
    """Return the bin of each value, from 0: one for each value if there are few, else about equally full ones.

    Equal values share a bin, so that there may be fewer than ten.
    """
    distinct, place = np.unique(values, return_inverse=True)
    if len(distinct) > _MOST_BINS:
        begins = np.quantile(values, np.arange(1, _MOST_BINS) / _MOST_BINS, method="higher")
        place = np.unique(np.searchsorted(np.unique(begins), values, side="right"), return_inverse=True)[1]
    return place.astype(np.int64)


def _list_type_variance(tally: Tally) -> list[Row]:
    """Return the share of variance within types, and that of units that are shuffled among tokens.

    Within types lies sum_v (S2_v - S1_v²/n_v) of the sum of squares S2 - S1²/n; shuffled, (n - types)/(n - 1) of it.
    """
    count_V = tally.types_by_fold.sum(0)
    tokens, num_types = int(count_V.sum()), int((count_V > 0).sum())
    rows = []
    for layer, units_V in enumerate(tally.units_by_fold.sum(0)):
        squares = tally.squared_units[layer].sum()
        whole = squares - units_V.sum() ** 2 / max(tokens, 1)
        within = squares - (np.square(units_V) / np.maximum(count_V, 1)).sum()
        known = whole > _LEAST_VARIANCE * squares
        rows.append({
            "layer": layer, "within_share": float(np.clip(within / whole, 0, 1)) if known else None,
            "null": (tokens - num_types) / (tokens - 1) if known else None, "tokens": tokens, "types": num_types,
        })  # fmt: skip
    return rows


def describe_tokens(tally: Tally, token_ids: Sequence[int], texts: Sequence[str]) -> dict[str, list[Row]]:
    """Return the table chosen_tokens: which share of a token's pairs each expert has, layer by layer.

    Of each token the first row has no layer and no expert, but the activated ratio over all layers and its mean
    likelihood; what a token that is not in the text would need is None.

    Args:
        tally: of the text.
        token_ids: token types.
        texts: of all token types.
    """
    if len(texts) != tally.vocab:
        raise ConfigError(f"texts: {len(texts)}, must be {tally.vocab}, one for each token type")
    outside = [token for token in token_ids if not 0 <= token < tally.vocab]
    if outside:
        message = f"token_ids: {outside[0]} is no token of the model, must be from 0 to {tally.vocab - 1}"
        raise ConfigError(message, argument="token_ids")
    return {
        "chosen_tokens": [
            row for token in token_ids for row in _describe_token(tally, int(token), texts[token])
        ]
    }


def _describe_token(tally: Tally, token: int, text: str) -> list[Row]:
    count = int(tally.types_by_fold[:, token].sum())
    whole = count * sum(tally.widths) * len(tally.blocks)
    nll = divide_known(tally.nll_by_fold[:, token].sum(), tally.nll_tokens_by_fold[:, token].sum())
    name: Row = {"token": token, "text": text, "count": count}
    none: Row = {"share": None, "activated_ratio": None, "nll": None}
    rows = [{
        **name, "layer": None, "expert": None, "width": None, **none,
        "activated_ratio": clean_number(divide_known(tally.units_by_fold[:, :, token].sum(), whole)),
        "nll": clean_number(nll),
    }]  # fmt: skip
    for layer, pairs_E in enumerate(tally.pairs[:, :, token]):
        share_E = divide_known(pairs_E, pairs_E.sum())
        for expert, width in enumerate(tally.widths):
            place = {"layer": layer, "expert": expert, "width": width}
            rows.append({**name, **place, **none, "share": clean_number(share_E[expert])})
    return rows
