"""Standard input, output and error as they should be, however the process was started (standard library only)."""

import io
import os
import sys
from collections.abc import Callable
from typing import Any, ClassVar, TextIO

from hmoe.parallel.process_numbers import LOG_VARIABLE


class OutputStream(io.TextIOWrapper):
    """A text stream whose reader may go away, or whose disk may fill, while the work goes on: that text is lost.

    Attributes:
        failure: the system's error, unless the reader has gone; None: all was written.
        before_output: called before anything is written or flushed to any such stream.
        log: file that keeps a copy of what is written to any of them, but for what moves on a terminal; None: none.
    """

    failure: OSError | None = None
    before_output: ClassVar[Callable[[], None] | None] = None
    log: ClassVar[TextIO | None] = None

    def write(self, text: str) -> int:
        """Write a text; one that cannot be written is lost."""
        if OutputStream.before_output is not None:
            OutputStream.before_output()
        if "\x1b" not in text:
            write_log(text)
        try:
            return super().write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        """Flush what is buffered; what cannot be written is lost."""
        if OutputStream.before_output is not None:
            OutputStream.before_output()
        try:
            super().flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        """Send what is buffered, and all that follows, nowhere."""
        if not isinstance(error, BrokenPipeError) and self.failure is None:
            self.failure = error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


def write_log(text: str) -> None:
    """Append a text to the log of this process, if it keeps one; a log that cannot be written is given up."""
    if OutputStream.log is None:
        return
    try:
        OutputStream.log.write(text)
        OutputStream.log.flush()
    except OSError:
        OutputStream.log = None


def prepare_streams() -> None:
    """Open those of the three that are closed, so that no file gets their number, and make the outputs forgiving."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115 - for the whole process
    sys.stdout = sys.__stdout__ = _make_forgiving(sys.stdout, 1)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _make_forgiving(sys.stderr, 2)  # type: ignore[misc]
    if os.environ.get("RANK") == "0" and (
        log := os.environ.pop(LOG_VARIABLE, None)
    ):  # others write into theirs alone
        OutputStream.log = open(log, "a", encoding="utf-8", errors="replace")  # noqa: SIM115 - for the whole process


def _make_forgiving(stream: Any, descriptor: int) -> Any:
    """Return the stream with ? for characters that it cannot show."""
    if stream is None:
        return OutputStream(open(descriptor, "wb", closefd=False), "utf-8", "replace")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    encoding, by_line, at_once = (
        stream.encoding,
        stream.line_buffering or descriptor == 2,
        stream.write_through,
    )
    # left attached, the old stream would close it
    return OutputStream(stream.detach(), encoding, "replace", line_buffering=by_line, write_through=at_once)
