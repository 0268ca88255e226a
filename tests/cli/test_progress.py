"""The progress bar: live on a terminal, lines elsewhere, and never in the way of what is printed."""

import io
import subprocess
import sys

import pytest

from hmoe.cli import progress
from hmoe.cli.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that a test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def test_lines_are_plain_and_rare_without_a_terminal(clock: list[float]) -> None:
    stream = io.StringIO()
    with ProgressBar(stream) as bar:
        for seconds, done in ((100, 0), (105, 2), (111, 4), (112, 5), (122, 6), (123, 10)):
            clock[0] = seconds
            bar.update("a", done, 10, f"{done} of 10")
        bar.update("b", 10, None, "nobody knows how many")
    assert stream.getvalue() == "4 of 10 | ETA 0m16s\n6 of 10 | ETA 0m14s\n10 of 10\n"


def test_the_first_line_comes_at_once_if_asked_for(clock: list[float]) -> None:
    stream = io.StringIO()
    with ProgressBar(stream, at_once=True) as bar:
        for done in (1, 2, 3):
            bar.update("a", done, 10, f"step {done}")
    assert stream.getvalue() == "step 1\n"


def test_time_left_is_counted_from_where_a_task_began_or_began_again(clock: list[float]) -> None:
    stream = io.StringIO()
    with ProgressBar(stream) as bar:
        for seconds, done in ((100, 0.5), (3700, 0.75), (3800, 0.0), (3860, 0.5)):
            clock[0] = seconds
            bar.update("a", done, 1.0, f"{done}")
    assert stream.getvalue() == "0.75 | ETA 1h00m\n0.0\n0.5 | ETA 1m00s\n"


def test_a_bar_is_live_on_a_terminal_and_lines_stay_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    with ProgressBar(stream) as bar:
        bar.update("a", 1, 4, "[1] of 4")  # no markup
        bar.print_line("[bold]a line[/bold] " + "x" * 100, style="yellow")
        bar.update("a", 2, 4, "2 of 4")
        bar.update("b", 1, None, "another")
        bar._live.refresh()  # type: ignore[union-attr]
    shown = stream.getvalue()
    assert all(text in shown for text in ("[bold]a line[/bold] " + "x" * 100, "2 of 4", "another", "━"))
    assert shown.endswith("\x1b[2K")  # the bars are gone


def test_rich_is_loaded_for_terminals_only() -> None:
    code = """
import sys
from hmoe.cli.progress import ProgressBar
from hmoe.train.console import Console
with ProgressBar() as bar:
    bar.update("a", 1, 1, "done")
    Console(bar).warn("look")
print([name for name in sys.modules if name.split(".")[0] == "rich"])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("[]\n", "done\nwarning: look\n")
