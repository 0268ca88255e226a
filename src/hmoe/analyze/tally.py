"""Sums over traced tokens, by expert, token type and label: what most looks inside are made from.

Their size depends on the model and not on how much was read. Tables by fold have the documents spread over up to
MAX_FOLDS groups, by which intervals are made: leaving one out takes whole documents away, never tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hmoe.analyze.tally_memory import check_tally_memory, choose_num_folds
from hmoe.analyze.traced_text import Floats, Ints, TracedText
from hmoe.analyze.wide_sums import WideSums
from hmoe.errors import ConfigError

_MOST_COUNT = np.iinfo(np.int32).max
_BY_DOMAIN = ("domain_tokens", "domain_pairs", "domain_num_experts")
_WIDE = ("pair_squares", "pair_products")

Table = npt.NDArray[Any]


@dataclass
class Tally:
    """Sums over the tokens that were read.

    Axes: `Z` MoE layers, `E` experts, `V` token types, and first, where a name ends in `by_fold`, folds of documents.
    Separators and the first tokens of windows count in the tables by fold, in `num_experts` and by domain, but in
    nothing that is by token type or label.

    Args:
        widths: hidden units of each expert, 0 for zero-computation experts.
        blocks: for each MoE layer the number of its block.
        vocab: token types.
        labels: labellings of token types by name, each with a class number for every type, -1 for none.

    Attributes:
        num_folds: groups of documents.
        num_documents: documents, or blocks of long ones, that were begun.
        domains: names, in the order of their numbers.
        tokens_by_fold: tokens read (F).
        pairs_by_fold: token-expert pairs (F, Z, E).
        probs_by_fold: router probabilities summed over tokens (F, Z, E).
        num_experts: tokens by how many experts served them (Z, E + 1).
        types_by_fold: tokens of each type (F, V).
        types_by_count: by number of experts, the tokens of each type that so many served (Z, V).
        units_by_fold: hidden units activated by each type (F, Z, V).
        nll_by_fold, nll_tokens_by_fold: summed negative log-likelihoods, and of how many tokens (F, V).
        squared_units: squares of the hidden units that a token activated, summed (Z, V).
        pairs: token-expert pairs by type (Z, E, V), four bytes each: sum and multiply them in a wider type.
        pair_squares, pair_products: sums over documents of squared pairs, and of pairs times tokens (Z, E, V), exact
            in four bytes each; an index gives a layer.
        type_squares: sums over documents of squared tokens (V).
        label_tokens: for each labelling tokens (F, classes).
        label_pairs: for each labelling token-expert pairs (F, classes, Z, E).
        domain_tokens, domain_pairs, domain_num_experts: by domain (F), (F, Z, E), (Z, E + 1).
    """

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    vocab: int
    labels: Mapping[str, Ints]
    num_folds: int = 0
    num_documents: int = 0
    domains: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        num_layers, num_experts, vocab = len(self.blocks), len(self.widths), self.vocab
        if not num_layers:
            raise ConfigError("the model is dense and has no experts to look at")
        self.num_folds = self.num_folds or choose_num_folds(num_layers, vocab)
        sizes = {name: int(class_V.max()) + 1 for name, class_V in self.labels.items()}
        check_tally_memory(num_layers, num_experts, vocab, sizes)
        folds = self.num_folds
        self.tokens_by_fold = np.zeros(folds, np.int64)
        self.pairs_by_fold = np.zeros((folds, num_layers, num_experts), np.int64)
        self.probs_by_fold = np.zeros((folds, num_layers, num_experts))
        self.num_experts = np.zeros((num_layers, num_experts + 1), np.int64)
        self.types_by_fold = np.zeros((folds, vocab), np.int64)
        self.units_by_fold = np.zeros((folds, num_layers, vocab))
        self.nll_by_fold = np.zeros((folds, vocab))
        self.nll_tokens_by_fold = np.zeros((folds, vocab), np.int64)
        self.squared_units = np.zeros((num_layers, vocab))
        self.pairs = np.zeros((num_layers, num_experts, vocab), np.int32)
        self.pair_squares = WideSums((num_layers, num_experts, vocab))
        self.pair_products = WideSums((num_layers, num_experts, vocab))
        self.type_squares = np.zeros(vocab)
        self.label_tokens = {name: np.zeros((folds, size), np.int64) for name, size in sizes.items()}
        self.label_pairs = {
            name: np.zeros((folds, size, num_layers, num_experts), np.int64) for name, size in sizes.items()
        }
        self.types_by_count: dict[int, Table] = {}  # most models have few counts, many of them a single one
        self.domain_tokens: list[Ints] = []
        self.domain_pairs: list[Ints] = []
        self.domain_num_experts: list[Ints] = []
        self._open_cells: list[Ints] = []  # of the document that is not read to its end: cells of `pairs`
        self._open_types: list[Ints] = []
        self._open_document = -1

    def update(self, text: TracedText) -> None:
        """Add the tokens of some windows.

        Raises:
            ConfigError: if a token type comes to occur more often than `pairs` can count.
        """
        trace, places = text.trace, text.places
        self._check_counts(len(trace.tokens_T))
        layer_N, expert_N, token_N = (t.numpy() for t in (trace.layer_N, trace.expert_N, trace.token_N))
        fold_T = places.document_T % self.num_folds
        cell_N = layer_N * len(self.widths) + expert_N
        np.add.at(self.tokens_by_fold, fold_T, 1)
        np.add.at(self.pairs_by_fold.reshape(self.num_folds, -1), (fold_T[token_N], cell_N), 1)
        probs_ZTE = trace.probs_ZTE.double().numpy()
        for fold in np.unique(fold_T):
            self.probs_by_fold[fold] += probs_ZTE[:, fold_T == fold].sum(1)
        count_ZT = trace.num_experts_ZT.numpy()
        self._add_domains(places.domain_T, fold_T, count_ZT, token_N, cell_N)
        ordinary_T = places.ordinary_T
        self._add_types(text, fold_T, ordinary_T)
        ordinary_N = ordinary_T[token_N]
        self._add_pairs(text, cell_N[ordinary_N], token_N[ordinary_N], fold_T)

    def finish(self) -> None:
        """Count the last document; nothing follows it."""
        self._close_document()

    def _check_counts(self, num_new: int) -> None:
        """Raise ConfigError before a count of pairs could exceed what four bytes hold."""
        if int(self.tokens_by_fold.sum()) + num_new <= _MOST_COUNT:
            return
        count_V = self.types_by_fold.sum(0)
        token = int(count_V.argmax())
        if count_V[token] + num_new > _MOST_COUNT:
            raise ConfigError(
                f"token type {token} occurs {count_V[token]:,} times in the {self.tokens_by_fold.sum():,} tokens read "
                f"so far: must be at most {_MOST_COUNT:,}; read fewer tokens",
                argument="most_tokens",
            )

    def _add_domains(self, domain_T: Ints, fold_T: Ints, count_ZT: Ints, token_N: Ints, cell_N: Ints) -> None:
        by_layer = self.num_experts.shape[1] * np.arange(len(count_ZT))[:, None]
        for domain in np.unique(domain_T):
            while len(self.domain_tokens) <= domain:
                self.domain_tokens.append(np.zeros_like(self.tokens_by_fold))
                self.domain_pairs.append(np.zeros_like(self.pairs_by_fold))
                self.domain_num_experts.append(np.zeros_like(self.num_experts))
            own_T = domain_T == domain
            places = (count_ZT[:, own_T] + by_layer).ravel()
            counts = np.bincount(places, minlength=self.num_experts.size).reshape(self.num_experts.shape)
            self.num_experts += counts
            self.domain_num_experts[domain] += counts
            np.add.at(self.domain_tokens[domain], fold_T[own_T], 1)
            own_N = own_T[token_N]
            table = self.domain_pairs[domain].reshape(self.num_folds, -1)
            np.add.at(table, (fold_T[token_N[own_N]], cell_N[own_N]), 1)

    def _add_types(self, text: TracedText, fold_T: Ints, ordinary_T: npt.NDArray[np.bool_]) -> None:
        """Add what is by token type: counts, units and likelihoods."""
        type_T, fold_T = text.trace.tokens_T.numpy()[ordinary_T], fold_T[ordinary_T]
        nll_T = text.trace.nll_T.numpy()[ordinary_T]
        units_ZT = text.trace.width_ZT.numpy()[:, ordinary_T]
        np.add.at(self.types_by_fold, (fold_T, type_T), 1)
        known_T = np.isfinite(nll_T)
        np.add.at(self.nll_by_fold, (fold_T[known_T], type_T[known_T]), nll_T[known_T])
        np.add.at(self.nll_tokens_by_fold, (fold_T[known_T], type_T[known_T]), 1)
        self._add_counts(text.trace.num_experts_ZT.numpy()[:, ordinary_T], type_T)
        for layer, units_T in enumerate(units_ZT):
            np.add.at(self.units_by_fold[:, layer], (fold_T, type_T), units_T)
            np.add.at(self.squared_units[layer], type_T, np.square(units_T))
        for name, class_V in self.labels.items():
            class_T = class_V[type_T]
            np.add.at(self.label_tokens[name], (fold_T[class_T >= 0], class_T[class_T >= 0]), 1)

    def _add_counts(self, count_ZT: Ints, type_T: Ints) -> None:
        for count in np.unique(count_ZT).tolist():
            if count not in self.types_by_count:
                self.types_by_count[count] = np.zeros((len(self.blocks), self.vocab), np.int32)
            for types_V, count_T in zip(self.types_by_count[count], count_ZT, strict=True):
                np.add.at(types_V, type_T[count_T == count], 1)

    def _add_pairs(self, text: TracedText, cell_N: Ints, token_N: Ints, fold_T: Ints) -> None:
        """Add pairs of ordinary tokens, by type and label, and document by document."""
        type_T = text.trace.tokens_T.numpy()
        type_N = type_T[token_N]
        flat_N = cell_N * self.vocab + type_N
        np.add.at(self.pairs.reshape(-1), flat_N, 1)
        for name, class_V in self.labels.items():
            class_N = class_V[type_N]
            table = self.label_pairs[name].reshape(self.num_folds, -1, len(self.blocks) * len(self.widths))
            known_N = class_N >= 0
            np.add.at(table, (fold_T[token_N][known_N], class_N[known_N], cell_N[known_N]), 1)
        document_T = text.places.document_T
        ordinary_T = text.places.ordinary_T
        for document in np.unique(document_T):
            if document != self._open_document:
                self._close_document()
                self._open_document, self.num_documents = int(document), int(document) + 1
            own_T = document_T == document
            self._open_cells.append(flat_N[own_T[token_N]])
            self._open_types.append(type_T[own_T & ordinary_T])

    def _close_document(self) -> None:
        """Add the squares of a document that was read to its end."""
        if self._open_types:
            types, type_counts = np.unique(np.concatenate(self._open_types), return_counts=True)
            cells, cell_counts = np.unique(np.concatenate(self._open_cells), return_counts=True)
            self.type_squares[types] += np.square(type_counts)
            self.pair_squares.add(cells, np.square(cell_counts))
            own_counts = type_counts[np.searchsorted(types, cells % self.vocab)]
            self.pair_products.add(cells, cell_counts * own_counts)
        self._open_cells, self._open_types = [], []

    # What was read so far, for a file from which another process goes on.

    def list_arrays(self) -> dict[str, Table]:
        """Return all tables by name, of what was read so far."""
        fixed = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        tables = {
            f"{group}.{name}": table
            for group in ("label_tokens", "label_pairs")
            for name, table in getattr(self, group).items()
        }
        wide = {
            f"{group}.{name}": table
            for group in _WIDE
            for name, table in getattr(self, group).list_arrays().items()
        }
        domains = {
            f"{group}.{i}": table for group in _BY_DOMAIN for i, table in enumerate(getattr(self, group))
        }
        by_count = {f"types_by_count.{count}": table for count, table in self.types_by_count.items()}
        none = np.zeros(0, np.int64)
        state = {
            "open_cells": np.concatenate([none, *self._open_cells]),
            "open_types": np.concatenate([none, *self._open_types]),
            "position": np.array([self._open_document, self.num_documents, self.num_folds]),
        }
        return {**fixed, **tables, **by_count, **wide, **domains, **state}

    def restore_arrays(self, arrays: Mapping[str, Table]) -> None:
        """Take over the tables that `list_arrays` gave.

        They are copied one after another into the tables that there are: a copy of all beside them may be too much.
        """
        self._open_document, self.num_documents, num_folds = map(int, arrays["position"])
        if num_folds != self.num_folds:
            raise ValueError(f"tables of {num_folds} folds for {self.num_folds}")
        for name in self.list_arrays():
            group, _, key = name.partition(".")
            if group in ("label_tokens", "label_pairs"):
                getattr(self, group)[key][...] = arrays[name]
            elif not key and name in vars(self):
                getattr(self, name)[...] = arrays[name]
        for group in _WIDE:
            own = ("rest", "overflows")
            getattr(self, group).restore_arrays({key: arrays[f"{group}.{key}"] for key in own})
        self.types_by_count = {
            int(name.partition(".")[2]): arrays[name].copy()
            for name in arrays
            if name.startswith("types_by_count.")
        }
        num_domains = sum(name.startswith("domain_tokens.") for name in arrays)
        for group in _BY_DOMAIN:
            setattr(self, group, [arrays[f"{group}.{i}"].copy() for i in range(num_domains)])
        self._open_cells, self._open_types = [arrays["open_cells"]], [arrays["open_types"]]


def divide_known(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> Floats:
    """Return quotients, NaN where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    quotient = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator != 0)
    return quotient
