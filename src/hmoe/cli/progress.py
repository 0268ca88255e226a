"""The one progress bar: of every verb that takes long."""

import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_PLAIN_SECONDS = 10.0  # between plain lines


class _Pace:
    """When a task began, and how far it was then: a resumed one does not begin at zero."""

    def __init__(self, done: float) -> None:
        self.start, self.first_done, self.last_done = time.perf_counter(), done, done

    def estimate_seconds_left(self, total: float) -> float | None:
        progressed = self.last_done - self.first_done
        if progressed <= 0 or self.last_done >= total:
            return None
        return (time.perf_counter() - self.start) * (total - self.last_done) / progressed


class ProgressBar:
    """A live line per task on a terminal; elsewhere plain lines, of a task that is done or every ten seconds.

    Library functions take a callback, in which a verb calls `update`: they neither know rich nor terminals.

    Args:
        stream: where it is shown; None: standard error.
        at_once: without a terminal, print the first line of all at once.
    """

    def __init__(self, stream: TextIO | None = None, at_once: bool = False) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._live: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._paces: dict[str, _Pace] = {}
        self._last_plain = -_PLAIN_SECONDS if at_once else time.perf_counter()

    def __enter__(self) -> "ProgressBar":
        if self._stream.isatty():
            # Not above: verbs whose output is read by programs need not wait for rich.
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            console = Console(file=self._stream, highlight=False, soft_wrap=True)
            columns = (BarColumn(24), TextColumn("{task.fields[line]}", markup=False))
            # What is printed meanwhile appears above the bar, but must not leave the file that standard output goes to.
            self._live = Progress(
                *columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty()
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def print_line(self, text: str, style: str = "") -> None:
        """Print a line that stays, above what is live; `style` is a style of rich, such as a colour."""
        if self._live is None:
            print(text, file=self._stream, flush=True)
        else:
            self._live.console.print(text, markup=False, style=style or None)

    def update(self, task: str, done: float, total: float | None, text: str) -> None:
        """Show how far a task is.

        Args:
            task: its name, under which it was shown before.
            done: parts that are done.
            total: all parts, None if nobody knows.
            text: the line beside the bar; the time left is added to it.
        """
        line = text + self._describe_time_left(task, done, total)
        if self._live is not None:
            self._show_live(task, done, total, line)
        elif (total is not None and done >= total) or time.perf_counter() - self._last_plain > _PLAIN_SECONDS:
            self._last_plain = time.perf_counter()
            self.print_line(line)

    def _show_live(self, task: str, done: float, total: float | None, line: str) -> None:
        assert self._live is not None
        fields: dict[str, Any] = {"completed": done, "line": line}
        if task in self._tasks:
            self._live.update(self._tasks[task], total=total, **fields)
        else:
            self._tasks[task] = self._live.add_task("", total=total, **fields)

    def _describe_time_left(self, task: str, done: float, total: float | None) -> str:
        pace = self._paces.get(task)
        if pace is None or done < pace.last_done:  # a task that goes over its parts again
            pace = self._paces[task] = _Pace(done)
        pace.last_done = done
        seconds = None if total is None else pace.estimate_seconds_left(total)
        return "" if seconds is None else f" | ETA {_format_duration(seconds)}"


def _format_duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
