"""Read the documents of all inputs in order, with the position after each, where reading can go on."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from hmoe.data.inputs import InputFile
from hmoe.data.readers import Document, read_documents
from hmoe.errors import DataError

_NUM_NAMED = 3  # skipped documents that are named


class InputPosition(NamedTuple):
    """Where reading goes on: after `record` records of file `file`; the other counts are of what was read."""

    file: int
    record: int
    skipped: int
    empty: int


START = InputPosition(0, 0, 0, 0)


class PositionedDocument(NamedTuple):
    """A document and the position after it."""

    document: Document
    after: InputPosition


class Documents:
    """Documents with text, from a position on; `position` is the one after all that was read.

    Args:
        files: the inputs.
        text_field: field of a record that is its text, see `hmoe.data.readers.read_documents`.
        max_bad: number of unusable documents to skip before one is raised.
        start: where to go on.
        begin_file: called with the index of every file that is begun.
        say: called with a line for each of the first documents that are skipped.

    Raises:
        DataError: when iterated, for damaged files and too many unusable documents.
    """

    def __init__(
        self,
        files: Sequence[InputFile],
        text_field: str | None,
        max_bad: int,
        start: InputPosition = START,
        begin_file: Callable[[int], None] = lambda file: None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:  # fmt: skip
        self.position = start
        self._files, self._text_field, self._max_bad = files, text_field, max_bad
        self._begin_file, self._say = begin_file, say

    def __iter__(self) -> Iterator[PositionedDocument]:
        start, skipped, empty = self.position, self.position.skipped, self.position.empty
        for file in range(start.file, len(self._files)):
            self._begin_file(file)
            for record, item in enumerate(read_documents(self._files[file], self._text_field), 1):
                # A compressed file cannot be entered in its middle, so what was read before is read over.
                if file == start.file and record <= start.record:
                    continue
                if isinstance(item, DataError):
                    skipped += 1
                    self._skip(item, skipped)
                empty += isinstance(item, Document) and not item.text
                self.position = InputPosition(file, record, skipped, empty)
                if isinstance(item, Document) and item.text:
                    yield PositionedDocument(item, self.position)

    def _skip(self, error: DataError, skipped: int) -> None:
        if skipped > self._max_bad:
            raise error
        if skipped <= _NUM_NAMED:
            self._say(f"skipped: {error}")
