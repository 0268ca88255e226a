"""Rank correlations of many rows at a time: Spearman's, and Spearman's with a third variable held fixed."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from hmoe.statistics.jackknife import Values

_FEWEST_COUNTED = 1024  # values from which counting whole numbers is faster than sorting them
_MOST_COUNTED = 16  # times as many different numbers, up to which it is
_LEAST_REST = 1e-9  # share of a variance that the third variable must leave, above what rounding gives


def rank_values(values: npt.ArrayLike) -> Values:
    """Return the ranks along the last axis, from 1, equal values sharing the average of theirs."""
    table = np.asarray(values)
    if not table.size:
        return np.zeros(table.shape)
    rows = table.reshape(-1, table.shape[-1])
    if rows.shape[1] >= _FEWEST_COUNTED and table.dtype.kind in "iu" and rows.min() >= 0:
        return np.stack([_rank_by_counting(row) for row in rows]).reshape(table.shape)
    return _rank_by_sorting(rows).reshape(table.shape)


def _rank_by_sorting(rows: npt.NDArray[Any]) -> Values:
    size = rows.shape[1]
    order = np.argsort(rows, axis=1, kind="stable")
    in_order = np.take_along_axis(rows, order, 1)
    begins = np.ones(rows.shape, np.bool_)
    begins[:, 1:] = in_order[:, 1:] != in_order[:, :-1]
    ends = np.ones(rows.shape, np.bool_)
    ends[:, :-1] = begins[:, 1:]
    places = np.arange(size)
    first = np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    last = np.minimum.accumulate(np.where(ends, places, size)[:, ::-1], axis=1)[:, ::-1]
    ranks = np.empty(rows.shape)
    np.put_along_axis(ranks, order, (first + last) / 2 + 1, 1)
    return ranks


def _rank_by_counting(row: npt.NDArray[Any]) -> Values:
    if row.max() > _MOST_COUNTED * len(row):
        return np.asarray(_rank_by_sorting(row[None])[0])
    counts = np.bincount(row)
    last = np.cumsum(counts)
    ranks: Values = (last - (counts - 1) / 2)[row]
    return ranks


def standardise_ranks(values: npt.ArrayLike) -> Values:
    """Return ranks with mean 0 and sum of squares 1 along the last axis; NaN where all values are equal or any is NaN.

    The product of two such rows is their Spearman correlation.
    """
    table = np.asarray(values)
    size = table.shape[-1]
    ranks = rank_values(table) - (size + 1) / 2
    length = np.sqrt(np.square(ranks).sum(-1, keepdims=True))
    unknown = np.isnan(table).any(-1, keepdims=True) | (length == 0)
    known = np.broadcast_to(~unknown, ranks.shape)
    return np.asarray(np.divide(ranks, length, out=np.full(ranks.shape, np.nan), where=known))


def compute_spearman(first: npt.ArrayLike, second: npt.ArrayLike) -> Values:
    """Return Spearman's correlations along the last axis; other axes broadcast.

    NaN where a side is constant, has a NaN, or has fewer than two values.
    """
    product = standardise_ranks(first) * standardise_ranks(second)
    correlation = (
        np.clip(product.sum(-1), -1, 1) if product.shape[-1] else np.full(product.shape[:-1], np.nan)
    )
    return np.asarray(correlation)


def compute_partial_spearman(first: npt.ArrayLike, second: npt.ArrayLike, given: npt.ArrayLike) -> Values:
    """Return Spearman's correlations along the last axis with a third variable held fixed.

    The partial correlation of ranks; NaN where `compute_spearman` is, and where ranks of the third variable leave
    nothing of the first or the second.
    """
    return hold_fixed(
        compute_spearman(first, second), compute_spearman(first, given), compute_spearman(second, given)
    )


def hold_fixed(between: npt.ArrayLike, first_given: npt.ArrayLike, second_given: npt.ArrayLike) -> Values:
    """Return partial correlations from those between all three: (r_xy - r_xz r_yz) / sqrt((1 - r_xz²)(1 - r_yz²))."""
    between, first_given, second_given = (np.asarray(r, float) for r in (between, first_given, second_given))
    first_rest, second_rest = 1 - np.square(first_given), 1 - np.square(second_given)
    known = (first_rest > _LEAST_REST) & (second_rest > _LEAST_REST)
    rest = np.sqrt(np.where(known, first_rest * second_rest, np.nan))
    return np.asarray(np.clip((between - first_given * second_given) / rest, -1, 1))


class FeatureCorrelator:
    """Correlates any rows with the same features, whose ranks are taken once.

    Args:
        features: by name, each with a value for every item, NaN where it is unknown, or -1 among whole numbers: a
            feature is compared over the items for which it is known. All but the feature `fixed` are also compared
            with that one held fixed.
        fixed: name of a feature.

    Attributes:
        questions: (feature, None or the feature that is held fixed), in the order of what `correlate` returns.
        counts: for each of the questions over how many items.
    """

    def __init__(self, features: Mapping[str, npt.NDArray[Any]], fixed: str) -> None:
        self.questions: list[tuple[str, str | None]] = []
        self.counts: list[int] = []
        self._features: list[tuple[bytes, Values, Values | None]] = []
        self._masks: dict[bytes, npt.NDArray[np.bool_]] = {}
        for name, value_N in features.items():
            known_N = _is_known(value_N) & _is_known(features[fixed])
            key = known_N.tobytes()
            self._masks[key] = known_N
            ranks = standardise_ranks(value_N[known_N])
            fixed_ranks = None if name == fixed else standardise_ranks(features[fixed][known_N])
            self._features.append((key, ranks, fixed_ranks))
            names = [(name, None)] if name == fixed else [(name, None), (name, fixed)]
            self.questions += names
            self.counts += [int(known_N.sum())] * len(names)

    def correlate(self, rows_RN: npt.NDArray[Any]) -> Values:
        """Return the correlation of each question with each row (questions, R)."""
        ranks = {
            key: standardise_ranks(rows_RN if known_N.all() else rows_RN[:, known_N])
            for key, known_N in self._masks.items()
        }
        answers = []
        for key, feature_ranks, fixed_ranks in self._features:
            between = _multiply(ranks[key], feature_ranks)
            answers.append(between)
            if fixed_ranks is not None:
                row_fixed, feature_fixed = _multiply(ranks[key], fixed_ranks), feature_ranks @ fixed_ranks
                answers.append(hold_fixed(between, row_fixed, np.clip(feature_fixed, -1, 1)))
        return np.stack(answers)


def _multiply(ranks_RN: Values, ranks_N: Values) -> Values:
    return np.asarray(np.clip(ranks_RN @ ranks_N, -1, 1)) if len(ranks_N) else np.full(len(ranks_RN), np.nan)


def _is_known(value_N: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    return np.asarray(value_N >= 0 if value_N.dtype.kind in "iu" else ~np.isnan(value_N))
