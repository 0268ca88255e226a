"""Texts as a model reads them in training: documents one after another in windows, each token traced once."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from hmoe.analyze.token_types import TokenTypes, locate_in_words
from hmoe.analyze.traced_text import Ints, TokenPlaces, TracedText
from hmoe.config.available_memory import release_free_memory
from hmoe.model.trace import trace
from hmoe.model.transformer import Transformer

BLOCK_TOKENS = 8192  # a longer document counts as several units of independence
_PASS_TOKENS = 4096  # read in one pass, at least one window
_PASSES_BETWEEN_RELEASES = (
    8  # so that memory does not grow with the text, and pages are seldom asked for again
)


@dataclass(frozen=True)
class DocumentPart:
    """A document, or a part of a long one.

    Attributes:
        domain: its domain.
        tokens: with what the model's texts begin with, and the separator after the last part.
        is_first: whether the document begins here.
        is_last: whether it ends here.
        stream: windows run on from document to document within a stream, and begin anew with another.
    """

    domain: str
    tokens: Ints
    is_first: bool = True
    is_last: bool = True
    stream: str = ""


@dataclass
class ReadingCounts:
    """What was read so far.

    Attributes:
        documents: documents begun.
        long_documents: those that count as several units, being longer than BLOCK_TOKENS.
        units: units of independence.
        tokens: of whole passes.
        first_tokens, separators: of these, the first of a window, and those between documents.
    """

    documents: int = 0
    long_documents: int = 0
    units: int = 0
    tokens: int = 0
    first_tokens: int = 0
    separators: int = 0


@dataclass(frozen=True)
class WindowBatch:
    """Windows that are read in one pass, in the order of the text.

    Attributes:
        tokens_BL: token ids.
        places: of the tokens, window after window.
    """

    tokens_BL: Ints
    places: TokenPlaces


class WindowReader:
    """Cuts documents into windows, several for one pass.

    Args:
        window: tokens of a window; the last one of a stream may be shorter.
        types: of the vocabulary.
        separator: id that stands between documents.
        domains: names of domains by number; new ones are appended.

    Attributes:
        counts: of what was cut so far.
    """

    def __init__(self, window: int, types: TokenTypes, separator: int, domains: list[str]) -> None:
        self.window, self._types, self._separator, self._domains = window, types, separator, domains
        self.counts = ReadingCounts()
        self._waiting: list[Ints] = []  # rows: tokens, unit, domain, position in word
        self._num_waiting = 0
        self._length = 0  # of the document that is open
        self._before: tuple[int, int] | None = None

    def cut_windows(self, parts: Iterable[DocumentPart]) -> Iterator[WindowBatch]:
        """Yield batches of windows; while it is read, free memory goes back to the system now and then."""
        for index, batch in enumerate(self._cut_windows(parts), 1):
            yield batch
            if index % _PASSES_BETWEEN_RELEASES == 0:
                release_free_memory()

    def _cut_windows(self, parts: Iterable[DocumentPart]) -> Iterator[WindowBatch]:
        stream = None
        size = max(1, _PASS_TOKENS // self.window) * self.window
        for part in parts:
            if part.stream != stream:
                yield from self._empty()
                stream, self._before = part.stream, None
            self._append(part)
            while self._num_waiting >= size:
                yield self._take(size, self.window)
        yield from self._empty()

    def _append(self, part: DocumentPart) -> None:
        if part.domain not in self._domains and len(part.tokens):
            self._domains.append(part.domain)
        if part.is_first:
            self.counts.documents += 1
            self._length = 0
        length = self._length + np.arange(len(part.tokens))
        # A document counts as a unit for each BLOCK_TOKENS that it begins.
        new_units = int((length % BLOCK_TOKENS == 0).sum())
        unit = self.counts.units - 1 + np.cumsum(length % BLOCK_TOKENS == 0)
        self.counts.units += new_units
        is_long = self._length <= BLOCK_TOKENS < self._length + len(part.tokens)
        self.counts.long_documents += is_long
        self._length += len(part.tokens)
        position = locate_in_words(self._types, part.tokens, self._before)
        if len(part.tokens):
            self._before = (int(part.tokens[-1]), int(position[-1]))
        domain = np.full(len(part.tokens), self._domains.index(part.domain) if len(part.tokens) else 0)
        self._waiting.append(np.stack([part.tokens, unit, domain, position]).astype(np.int64))
        self._num_waiting += len(part.tokens)

    def _empty(self) -> Iterator[WindowBatch]:
        """Yield what waits: whole windows, then the shorter last one."""
        whole = self._num_waiting // self.window * self.window
        if whole:
            yield self._take(whole, self.window)
        if self._num_waiting:
            yield self._take(self._num_waiting, self._num_waiting)

    def _take(self, num_tokens: int, window: int) -> WindowBatch:
        waiting = np.concatenate(self._waiting, axis=1)
        tokens, unit, domain, position = waiting[:, :num_tokens]
        self._waiting = [waiting[:, num_tokens:]]
        self._num_waiting -= num_tokens
        is_first = np.arange(num_tokens) % window == 0
        is_separator = tokens == self._separator
        self.counts.tokens += num_tokens
        self.counts.first_tokens += int(is_first.sum())
        self.counts.separators += int(is_separator.sum())
        return WindowBatch(
            tokens.reshape(-1, window), TokenPlaces(unit, domain, is_first, is_separator, position)
        )


def trace_windows(model: Transformer, batch: WindowBatch) -> TracedText:
    """Read windows in one pass."""
    import torch  # noqa: PLC0415 - cutting needs none

    return TracedText(trace(model, torch.from_numpy(batch.tokens_BL)), batch.places)
