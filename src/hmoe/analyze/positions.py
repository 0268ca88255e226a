"""An index from experts to places in the texts that they served, with context, of bounded size."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from hmoe.analyze.traced_text import Ints, Row, TracedText
from hmoe.data.tokenizer import Tokenizer

MOST_POSITIONS = 16  # of an expert in a layer
_CONTEXT = 12  # tokens on each side
_NO_RANK = np.iinfo(np.uint64).max  # of a slot that holds nothing


class ExpertPositions:
    """A uniform sample of the ordinary tokens that each expert served, MOST_POSITIONS for each layer and expert.

    Every pair gets a number from a hash of where it stands, and those with the smallest numbers are kept: the same ones
    however the text is cut into passes. Their context is of the same document (block of a long one) and reaches over
    the ends of passes.
    """

    def __init__(self, num_layers: int, num_experts: int) -> None:
        self._num_cells, self._num_experts = num_layers * num_experts, num_experts
        shape = (self._num_cells, MOST_POSITIONS)
        self.rank = np.full(shape, _NO_RANK, np.uint64)
        self.document = np.zeros(shape, np.int64)
        self.place = np.zeros(shape, np.int64)
        self.context = np.full((*shape, 2 * _CONTEXT + 1), -1, np.int64)
        self.gate, self.nll, self.units = (np.zeros(shape) for _ in range(3))
        self.last_tokens = self.last_documents = np.zeros(0, np.int64)  # those before the next pass
        self._num_tokens = 0

    def update(self, text: TracedText) -> None:
        """Take in the tokens of some windows."""
        trace, places = text.trace, text.places
        self._fill_right(trace.tokens_T.numpy(), places.document_T)
        num_before = len(self.last_tokens)
        token_C = np.concatenate([self.last_tokens, trace.tokens_T.numpy()])
        document_C = np.concatenate([self.last_documents, places.document_T])
        layer_N, token_N = trace.layer_N.numpy(), trace.token_N.numpy()
        cell_N = layer_N * self._num_experts + trace.expert_N.numpy()
        place_N = self._num_tokens + token_N
        rank_N = hash_numbers(place_N * self._num_cells + cell_N)
        is_wanted_N = places.ordinary_T[token_N] & (rank_N < self.rank.max(1)[cell_N])
        for pair in _choose_smallest(np.flatnonzero(is_wanted_N), cell_N, rank_N):
            slot = (cell_N[pair], int(self.rank[cell_N[pair]].argmax()))
            if rank_N[pair] >= self.rank[slot]:
                continue  # others of this pass were smaller
            token = token_N[pair]
            self.rank[slot], self.place[slot] = rank_N[pair], place_N[pair]
            self.document[slot] = places.document_T[token]
            self.context[slot] = _cut_context(token_C, document_C, num_before + token)
            self.gate[slot] = trace.gate_N[pair]
            self.nll[slot], self.units[slot] = trace.nll_T[token], trace.width_ZT[layer_N[pair], token]
        self._num_tokens += len(trace.tokens_T)
        self.last_tokens, self.last_documents = token_C[-_CONTEXT:], document_C[-_CONTEXT:]

    def _fill_right(self, token_T: Ints, document_T: Ints) -> None:
        """Add the first tokens of a pass to the contexts that the one before it cut off."""
        is_near = (self.place >= self._num_tokens - _CONTEXT) & (self.rank < _NO_RANK)
        for slot in zip(*np.nonzero(is_near), strict=True):
            first = (
                self._num_tokens - int(self.place[slot]) + _CONTEXT
            )  # where the pass begins in the context
            num_new = min(2 * _CONTEXT + 1 - first, len(token_T))
            is_own = document_T[:num_new] == self.document[slot]
            self.context[slot][first : first + num_new] = np.where(is_own, token_T[:num_new], -1)

    def list_rows(self, tokenizer: Tokenizer) -> list[Row]:
        """Return the positions as rows, in the order of the text for each layer and expert."""
        rows = []
        for cell in range(self._num_cells):
            layer, expert = divmod(cell, self._num_experts)
            for slot in np.argsort(self.place[cell], kind="stable"):
                if self.rank[cell, slot] == _NO_RANK:
                    continue
                rows.append({"layer": layer, "expert": expert, **self._describe(cell, int(slot), tokenizer)})
        return rows

    def _describe(self, cell: int, slot: int, tokenizer: Tokenizer) -> Row:
        ids = self.context[cell, slot]
        left, right = ids[:_CONTEXT], ids[_CONTEXT + 1 :]
        nll = float(self.nll[cell, slot])
        return {
            "document": int(self.document[cell, slot]),
            "place": int(self.place[cell, slot]),
            "left": tokenizer.decode(left[left >= 0].tolist()),
            "text": tokenizer.decode([int(ids[_CONTEXT])]),
            "right": tokenizer.decode(right[right >= 0].tolist()),
            "gate": float(self.gate[cell, slot]),
            "nll": nll if np.isfinite(nll) else None,
            "units": float(self.units[cell, slot]),
        }

    def list_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return what was kept so far, by name."""
        arrays = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return {**arrays, "num_tokens": np.array([self._num_tokens])}

    def restore_arrays(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over what `list_arrays` gave."""
        for name, value in arrays.items():
            if name in vars(self):
                setattr(self, name, value.copy())
        self._num_tokens = int(arrays["num_tokens"][0])


def _choose_smallest(pairs: Ints, cell_N: Ints, rank_N: npt.NDArray[np.uint64]) -> Ints:
    """Return the pairs of each cell that have the smallest numbers, at most as many as a cell keeps."""
    pairs = pairs[np.lexsort((rank_N[pairs], cell_N[pairs]))]
    _, starts, counts = np.unique(cell_N[pairs], return_index=True, return_counts=True)
    return pairs[np.arange(len(pairs)) - np.repeat(starts, counts) < MOST_POSITIONS]


def _cut_context(token_T: Ints, document_T: Ints, token: int) -> Ints:
    """Return the tokens around a token, of the same document; -1 where there is none."""
    places = np.arange(token - _CONTEXT, token + _CONTEXT + 1)
    inside = np.clip(places, 0, len(token_T) - 1)
    is_own = (places == inside) & (document_T[inside] == document_T[token])
    return np.where(is_own, token_T[inside], -1)


def hash_numbers(numbers: Ints) -> npt.NDArray[np.uint64]:
    """Return a number without order for each (SplitMix64's finaliser)."""
    words = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
