"""Standard input, output and error as they should be, however the process was started (standard library only)."""

import io
import os
import sys
from collections.abc import Callable
from typing import Any, ClassVar


class OutputStream(io.TextIOWrapper):
    """A text stream whose reader may go away, or whose disk may fill, while the work goes on: that text is lost.

    Attributes:
        failure: the system's error, unless the reader has gone; None: all was written.
        before_output: called before anything is written or flushed to any such stream.
    """

    failure: OSError | None = None
    before_output: ClassVar[Callable[[], None] | None] = None

    def write(self, text: str) -> int:
        """Write a text; one that cannot be written is lost."""
        if OutputStream.before_output is not None:
            OutputStream.before_output()
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
