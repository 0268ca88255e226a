"""Lines at the end of a terminal that are drawn over again, and what is printed above them meanwhile."""

import os
import shutil
import sys
import threading
from collections.abc import Sequence
from typing import Any, TextIO
from unicodedata import combining, east_asian_width

_ERASE = "\r\x1b[J"  # from the first column to the end of the screen
_COLORS = {"yellow": "\x1b[33m"}
_DUMB = ("dumb", "unknown")  # terminals that cannot move the cursor


def is_live(stream: TextIO) -> bool:
    """Return whether a stream is a terminal on which lines can be drawn over again."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in _DUMB


def measure_terminal(stream: TextIO) -> os.terminal_size:
    """Return the columns and rows of a stream's terminal as they are now; 80 x 24 where it does not know."""
    try:
        size = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError, AttributeError):
        size = os.terminal_size((0, 0))
    return size if size.columns and size.lines else shutil.get_terminal_size()


def count_columns(text: str) -> int:
    """Return the columns that a text takes on a terminal."""
    return sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)


class LiveLines:
    """A few lines below everything else, while it is open.

    The cursor rests at the beginning of the first one, not at the end of the last: a terminal that becomes narrower
    breaks them into more rows and takes the cursor along, so that erasing from there on removes all of them and
    nothing above. (Rich, which counts the rows that it drew, leaves some behind.)

    Standard output and error, where they are terminals, print above the lines; what goes to files is left alone.

    Args:
        stream: the terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: Sequence[str] = ()
        self._lock = threading.RLock()  # a warning may be printed by another thread
        self._redirected: dict[str, _StreamAbove] = {}

    def open(self) -> None:
        """Have standard output and error print above the lines from now on."""
        for name in ("stdout", "stderr"):
            original = getattr(sys, name)
            if original is not None and original.isatty():
                self._redirected[name] = _StreamAbove(original, self)
                setattr(sys, name, self._redirected[name])

    def close(self) -> None:
        """Erase the lines, and leave the streams as they were."""
        self.draw(())
        for name, redirected in self._redirected.items():
            redirected.print_rest()
            if getattr(sys, name) is redirected:
                setattr(sys, name, redirected.original)
        self._redirected.clear()

    def draw(self, lines: Sequence[str]) -> None:
        """Show other lines, each narrower than the terminal."""
        with self._lock:
            self._write(self._erase_text() + self._lines_text(lines))
            self._lines = lines

    def print_above(self, text: str, stream: TextIO | None = None, style: str = "") -> None:
        """Print whole lines above, on the same terminal or on another stream; `style` is a colour's name."""
        color = "" if "NO_COLOR" in os.environ else _COLORS.get(style, "")
        with self._lock:
            self._write(self._erase_text())
            target = self._stream if stream is None else stream
            target.write(f"{color}{text}\x1b[0m\n" if color else f"{text}\n")
            target.flush()
            self._write(self._lines_text(self._lines))

    def _erase_text(self) -> str:
        return _ERASE if self._lines else ""

    def _lines_text(self, lines: Sequence[str]) -> str:
        back = f"\x1b[{len(lines) - 1}A" if len(lines) > 1 else ""
        return "\r\n".join(lines) + back + "\r" if lines else ""

    def _write(self, text: str) -> None:
        if text:
            self._stream.write(text)
            self._stream.flush()


class _StreamAbove:
    """Standard output or error while lines are live: whole lines go above them, a part waits for its rest."""

    def __init__(self, original: TextIO, live: LiveLines) -> None:
        self.original, self._live, self._part = original, live, ""

    def write(self, text: str) -> int:
        whole, newline, self._part = (self._part + text).rpartition("\n")
        if newline:
            self._live.print_above(whole, self.original)
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Do nothing: whole lines are out already."""

    def print_rest(self) -> None:
        # What another progress line would have drawn over again is not printed.
        self.original.write(self._part.rpartition("\r")[2])
        self.original.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)
