"""Standard input, output and error as they should be, however the process was started. Standard library only."""

import io
import os
import sys
from typing import Any


class OutputStream(io.TextIOWrapper):
    """A text stream whose reader may go away, or whose disk may fill: what is printed is then lost, and the work goes on.

    Attributes:
        failure: what the system answered, but for a reader that has gone; None: all was written.
    """

    failure: OSError | None = None

    def write(self, text: str) -> int:
        """As TextIOWrapper, but never fails."""
        try:
            return super().write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        """As TextIOWrapper, but never fails."""
        try:
            super().flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        """Whatever is buffered, and all that follows, goes nowhere."""
        if not isinstance(error, BrokenPipeError) and self.failure is None:
            self.failure = error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


def prepare_streams() -> None:
    """Open those of the three that are closed, so that no file gets their number, and make the outputs forgiving."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115 - for the whole process
    sys.stdout = sys.__stdout__ = _forgiving(sys.stdout, 1)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _forgiving(sys.stderr, 2)  # type: ignore[misc]


def _forgiving(stream: Any, number: int) -> Any:
    """A terminal that cannot show a character shows ?."""
    if stream is None:
        return OutputStream(open(number, "wb", closefd=False), "utf-8", "replace")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    encoding, by_line, at_once = stream.encoding, stream.line_buffering or number == 2, stream.write_through
    # left attached, the old stream would close it
    return OutputStream(stream.detach(), encoding, "replace", line_buffering=by_line, write_through=at_once)
