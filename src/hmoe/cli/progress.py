"""The one progress bar: of every verb that takes long."""

import os
import shutil
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO
from unicodedata import combining, east_asian_width

from hmoe.cli.streams import write_log
from hmoe.units import format_duration

if TYPE_CHECKING:
    from rich.live import Live


_PLAIN_SECONDS = 10.0  # between plain lines
_LIVE_SECONDS = 0.1  # between drawings on a terminal
_NARROWEST_BAR, _WIDEST_BAR = 4, 24
_GAP = "  "  # between parts of a live line
_DUMB = ("dumb", "unknown")  # terminals that cannot move the cursor


class _Pace:
    """When a task began, and how far it was then: a resumed one does not begin at zero."""

    def __init__(self, done: float) -> None:
        self.start, self.first_done, self.last_done = time.perf_counter(), done, done

    def describe(self, total: float | None) -> list[str]:
        """Return the share that is done and the time left; without a total, the time since it began."""
        seconds = time.perf_counter() - self.start
        if total is None:
            return [format_duration(seconds)]
        # Rounded down, as 100% means that it is done; 57 of 100 are not 56.999999999999993%.
        share = min(int(100 * self.last_done / total + 1e-9), 100) if total > 0 else 100
        progressed, left = self.last_done - self.first_done, total - self.last_done
        eta = [f"ETA {format_duration(seconds * left / progressed)}"] if progressed > 0 and left > 0 else []
        return [f"{share}%", *eta]


class ProgressBar:
    """A live line on a terminal; elsewhere plain lines, of a task that is done or every ten seconds.

    Library functions take a callback, in which a verb calls `update`: they know nothing of terminals.

    Args:
        stream: where it is shown; None: standard error.
        at_once: without a terminal, print the first line of all at once.
    """

    def __init__(self, stream: TextIO | None = None, at_once: bool = False) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._live: Live | None = None
        self._paces: dict[str, _Pace] = {}
        self._last_task, self._last_drawn = "", 0.0
        self._last_update = time.perf_counter()
        self._last_plain = -_PLAIN_SECONDS if at_once else self._last_update

    def __enter__(self) -> "ProgressBar":
        if self._stream.isatty() and os.environ.get("TERM", "").lower() not in _DUMB:
            # Not above: verbs whose output is read by programs need not wait for rich.
            from rich.console import Console
            from rich.live import Live

            console = Console(
                file=self._stream, highlight=False, markup=False, emoji=False, force_terminal=True
            )
            # What is printed meanwhile appears above the bar, but what goes to files is left alone.
            redirected = {f"redirect_{name}": getattr(sys, name).isatty() for name in ("stdout", "stderr")}
            self._live = Live(console=console, auto_refresh=False, transient=True, **redirected)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def encoding(self) -> str:
        """Encoding of what is shown, by which a caller chooses its characters."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def print_line(self, text: str, style: str = "") -> None:
        """Print a line that stays, above what is live; `style` is a colour on terminals."""
        if self._live is None:
            print(text, file=self._stream, flush=True)
        else:
            write_log(f"{text}\n")
            self._live.console.print(text, style=style or None, soft_wrap=True)

    def update(
        self, task: str, done: float, total: float | None, text: str | Sequence[str], below: str = ""
    ) -> None:
        """Show how far a task is.

        Args:
            task: its name, under which it was shown before.
            done: parts that are done.
            total: all parts, None if nobody knows.
            text: what stands after the bar, the share that is done and the time left; several parts in the order of
                their importance, of which a terminal shows the first that fit on two lines.
            below: what a second line of a terminal begins with, if it is wide enough; a last part elsewhere.
        """
        parts = [text] if isinstance(text, str) else list(text)
        now = time.perf_counter()
        head = self._follow(task, done).describe(total)
        is_done = total is not None and done >= total
        if self._live is not None:
            if is_done or task != self._last_task or now - self._last_drawn >= _LIVE_SECONDS:
                self._last_task, self._last_drawn = task, now
                self._draw(self._live, done, total, head, parts, below)
        # The next update is expected after as long as this one took, and must not come too late for a line.
        elif is_done or now - self._last_plain + (now - self._last_update) > _PLAIN_SECONDS:
            self._last_plain = now
            self.print_line(" | ".join([*head, *parts, *([below] if below else [])]))
        self._last_update = now

    def _follow(self, task: str, done: float) -> _Pace:
        pace = self._paces.get(task)
        if pace is None or done < pace.last_done:  # a task that goes over its parts again
            pace = self._paces[task] = _Pace(done)
        pace.last_done = done
        return pace

    def _draw(
        self, live: "Live", done: float, total: float | None, head: list[str], parts: list[str], below: str
    ) -> None:
        from rich.text import Text

        # Of this stream: rich would ask standard output. Measured anew, since people drag windows.
        size = measure_terminal(self._stream)
        live.console.width, live.console.height = size.columns, size.lines
        lines = self._lay_out(size, done, total, head, parts, below)
        live.update(Text("\n".join(lines), no_wrap=True, overflow="crop"), refresh=True)

    def _lay_out(
        self,
        size: os.terminal_size,
        done: float,
        total: float | None,
        head: list[str],
        parts: list[str],
        below: str,
    ) -> list[str]:
        """Return the live lines; they leave the last column free, from which some terminals go on to a new row."""
        room = size.columns - 1
        if len(" ".join(head)) + 2 > room:
            head = head[:1]
        line = " ".join([head[0].rjust(len("100%")), *head[1:]])
        if total is not None and room > len(line) + 1:
            cells = min(max(size.columns // 8, _NARROWEST_BAR), _WIDEST_BAR, room - len(line) - 1)
            line = f"{self._draw_bar(cells, done / total if total > 0 else 1)} {line}"
        line, rest = _join_while_fitting(line[: max(room, 0)], parts, room)
        if size.lines <= 2:
            return [line]
        # What the first line had no room for goes on in the second.
        second = below if count_columns(below) <= room else ""
        second, _ = _join_while_fitting(second, rest, room)
        return [line, second] if second else [line]

    def _draw_bar(self, cells: int, share: float) -> str:
        filled, empty = "█░" if self.encoding.lower().replace("-", "") == "utf8" else "#."
        num_filled = min(int(cells * share + 1e-9), cells)
        return filled * num_filled + empty * (cells - num_filled)


def _join_while_fitting(line: str, parts: Sequence[str], room: int) -> tuple[str, Sequence[str]]:
    """Append parts until one is too wide, and return the line and the parts that are left; none is cut."""
    for i, part in enumerate(parts):
        gap = _GAP if line else ""
        if count_columns(line) + len(gap) + count_columns(part) > room:
            return line, parts[i:]
        line += gap + part
    return line, ()


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
