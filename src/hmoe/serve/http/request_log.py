"""One line per request for whoever runs the server; it neither slows the server nor waits for its reader."""

import queue
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

_MOST_WAITING = 1000  # lines; further ones are counted and lost while nobody reads
_MOST_CHARACTERS = 200  # of a path


class RequestRecord(NamedTuple):
    """What is told of a request that has ended; nothing of its text.

    Attributes:
        method: of HTTP.
        path: without the query.
        status: of HTTP; 499 if the client went away before an answer.
        seconds: from its header to its last byte.
        prompt_tokens: of all its prompts; None where nothing was generated.
        new_tokens: of all its answers that ended; None where nothing was generated.
    """

    method: str
    path: str
    status: int
    seconds: float
    prompt_tokens: int | None = None
    new_tokens: int | None = None


class RequestLog:
    """Writes records in a thread of its own, so that a full pipe stops nobody but that thread.

    Args:
        write: takes a line that ends in a newline; OSError loses it.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._num_lost = write, 0
        self._lines: queue.Queue[str | None] = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._write_lines, name="request log", daemon=True)
        self._thread.start()

    def add(self, record: RequestRecord) -> None:
        """Take a record; it is lost if too many wait to be written."""
        if self._num_lost and not self._lines.full():
            lost, self._num_lost = self._num_lost, 0
            self._lines.put_nowait(f"{_format_time()} {lost} lines were lost: they were not read in time\n")
        try:
            self._lines.put_nowait(f"{_format_time()} {format_request(record)}\n")
        except queue.Full:
            self._num_lost += 1

    def close(self, seconds: float = 1.0) -> None:
        """Write what waits, for so many seconds at most."""
        try:
            self._lines.put(None, timeout=seconds)
        except queue.Full:
            return
        self._thread.join(seconds)

    def __enter__(self) -> "RequestLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_lines(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._write(line)
            except OSError:  # the reader has gone
                continue


def format_request(record: RequestRecord) -> str:
    """Return a record as words with a space between; whatever a client sent stays one word without surprises."""
    prompt, new = ("-" if count is None else count for count in (record.prompt_tokens, record.new_tokens))
    return (
        f"{_escape(record.method)} {_escape(record.path)} {record.status} "
        f"prompt={prompt} new={new} seconds={record.seconds:.3f}"
    )


def _escape(text: str) -> str:
    """Return a text in printable ASCII without spaces, the rest as Python writes it in a string."""
    shown = text[:_MOST_CHARACTERS].encode("unicode_escape").decode().replace(" ", "\\x20")
    return (shown or "-") + "..." * (len(text) > _MOST_CHARACTERS)


def _format_time() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
