"""The documents of all inputs, one after another, with the place after each, from which a killed preparation goes on."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from hmoe.data.inputs import Source
from hmoe.data.readers import Document, read
from hmoe.errors import DataError

_NAMED = 3  # skipped documents that are named


class Position(NamedTuple):
    """Where reading goes on, and how many documents before it were skipped, and how many had no text."""

    file: int
    record: int
    skipped: int
    empty: int


START = Position(0, 0, 0, 0)


class Item(NamedTuple):
    """A document and the position after it."""

    document: Document
    after: Position


class Documents:
    """Documents with text, from a position on; `position` is the one after all that was read, unusable ones included.

    Args:
        files: the inputs.
        text_field: see `read`.
        max_bad: unusable documents that are skipped before one is raised.
        start: where to go on.
        begin_file: told the number of every file that is begun.
        say: told the first documents that are skipped.

    Raises:
        DataError: when iterated, for damaged files and too many unusable documents.
    """

    def __init__(
        self,
        files: Sequence[Source],
        text_field: str | None,
        max_bad: int,
        start: Position = START,
        begin_file: Callable[[int], None] = lambda number: None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:  # fmt: skip
        self.position = start
        self._files, self._text_field, self._max_bad = files, text_field, max_bad
        self._begin_file, self._say = begin_file, say

    def __iter__(self) -> Iterator[Item]:
        start, skipped, empty = self.position, self.position.skipped, self.position.empty
        for number in range(start.file, len(self._files)):
            self._begin_file(number)
            for record, item in enumerate(read(self._files[number], self._text_field), 1):
                if number == start.file and record <= start.record:
                    continue
                if isinstance(item, DataError):
                    skipped += 1
                    self._skip(item, skipped)
                empty += isinstance(item, Document) and not item.text
                self.position = Position(number, record, skipped, empty)
                if isinstance(item, Document) and item.text:
                    yield Item(item, self.position)

    def _skip(self, error: DataError, skipped: int) -> None:
        if skipped > self._max_bad:
            raise error
        if skipped <= _NAMED:
            self._say(f"skipped: {error}")
