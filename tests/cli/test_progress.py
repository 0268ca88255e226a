"""The progress bar: live on a terminal, lines elsewhere, and never in the way of what is printed."""

import io
import subprocess
import sys

import pytest

from hmoe.cli.progress import ProgressBar
from tests.cli.terminal import Terminal

PARTS = ["loss 4.1234", "2.6543 bits/byte", "231 of 256 units", "9,960 tokens/s", "epoch 0.80", "step 17"]
BELOW = "experts of 72 to 184 units: ▆▅▃▃▃█▂█"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that a test sets."""
    now = [100.0]
    monkeypatch.setattr("hmoe.cli.progress.time.perf_counter", lambda: now[0])
    return now


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


def live_lines(columns: int, rows: int = 24, encoding: str = "utf-8") -> list[str]:
    """The lines of a task that is about half done, on a terminal of this size."""
    terminal = Terminal(columns, rows, encoding)
    with ProgressBar(terminal.stream) as bar:
        for done in (0.5, 0.5678):
            bar._last_drawn = 0
            bar.update("train", done, 1.0, PARTS, BELOW if encoding == "utf-8" else "shares _.:")
        lines = terminal.look().lines
    screen = terminal.close()
    assert screen.lines == []
    assert screen.wrapped == []
    return lines


def test_lines_are_plain_and_rare_without_a_terminal(clock: list[float]) -> None:
    stream = io.StringIO()
    with ProgressBar(stream) as bar:
        for seconds, done in ((100, 0), (105, 2), (111, 4), (112, 5), (122, 6), (123, 10)):
            clock[0] = seconds
            bar.update("a", done, 10, ["text", f"{done} of 10"], "below")
        bar.update("b", 10, None, "nobody knows how many")
    assert stream.getvalue() == (
        "40% | ETA 16s | text | 4 of 10 | below\n60% | ETA 14s | text | 6 of 10 | below\n"
        "100% | text | 10 of 10 | below\n"
    )


def test_plain_lines_come_at_least_every_ten_seconds(clock: list[float]) -> None:
    stream = io.StringIO()
    with ProgressBar(stream) as bar:
        for clock[0] in range(100, 172, 4):
            bar.update("a", clock[0], 1000, f"{clock[0]:.0f}")
    times = [int(line.split(" | ")[2]) for line in stream.getvalue().splitlines()]
    assert times == [108, 116, 124, 132, 140, 148, 156, 164]


def test_the_first_line_comes_at_once_if_asked_for(clock: list[float]) -> None:
    stream = io.StringIO()
    with ProgressBar(stream, at_once=True) as bar:
        for done in (1, 2, 3):
            bar.update("a", done, 10, f"step {done}")
    assert stream.getvalue() == "10% | step 1\n"


def test_time_left_is_counted_from_where_a_task_began_or_began_again(clock: list[float]) -> None:
    stream = io.StringIO()
    with ProgressBar(stream) as bar:
        for seconds, done in ((100, 0.5), (3700, 0.75), (3800, 0.0), (3860, 0.5)):
            clock[0] = seconds
            bar.update("a", done, 1.0, f"{done}")
        clock[0] = 3920
        bar.update("a", 0.57, None, "no end")
    assert stream.getvalue() == "75% | ETA 1h00m | 0.75\n0% | 0.0\n50% | ETA 1m00s | 0.5\n2m00s | no end\n"


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (20, "██░░  56% ETA"),
        (40, "██░░░  56% ETA"),
        (80, "█████░░░░░  56% ETA"),
        (200, "█████████████░░░░░░░░░░░  56% ETA"),
    ],
)
def test_bar_share_and_time_left_stand_at_every_width(columns: int, expected: str) -> None:
    first, *below = live_lines(columns)
    assert first.startswith(expected)
    assert len(first) < columns
    texts = first.split("  ")
    # Whole parts from the first on; the last that is missing would not have fitted.
    shown = [text for text in texts if text in PARTS]
    assert shown == PARTS[: len(shown)]
    assert len(shown) == {20: 0, 40: 1, 80: 3, 200: 6}[columns]
    # The second line begins with its own text, and takes what the first had no room for.
    second = below[0].split("  ") if below else []
    if columns >= 40:
        assert second.pop(0) == BELOW
    assert second == PARTS[len(shown) : len(shown) + len(second)]
    assert len(shown) + len(second) == {20: 1, 40: 1, 80: 6, 200: 6}[columns]


def test_a_terminal_without_unicode_or_with_two_rows_has_what_it_can_show() -> None:
    lines = live_lines(80, encoding="ascii")
    assert lines[0].startswith("#####.....  56% ETA")
    assert lines[1].startswith("shares _.:  ")
    assert len(live_lines(80, rows=2)) == 1


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    with ProgressBar(terminal.stream) as bar:
        bar.update("a", 1, 1, "done")
    assert terminal.close().lines == ["100% | done"]


@pytest.mark.parametrize("columns", [20, 40, 80])
def test_what_is_printed_meanwhile_stands_above_on_lines_of_its_own(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal(columns)
    monkeypatch.setattr(sys, "stdout", terminal.stream)
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    with ProgressBar() as bar:
        bar.update("a", 1, 4, ["[1] of 4", "x" * 15], BELOW)
        print("a result")
        bar.print_line("[bold]a line[/bold]", style="yellow")
        bar.update("a", 3, 4, ["3 of 4", "x" * 100], BELOW)
        print("a note", file=sys.stderr)
        print("without an end", end="")
    assert sys.stdout is terminal.stream is sys.stderr
    print("the end")
    lines = terminal.close().lines
    assert lines[:3] == ["a result", "[bold]a line[/bold]", "a note"]
    assert "".join(lines[3:]).replace("\n", "") == "without an endthe end"
    assert "\x1b[33m[bold]a line[/bold]\x1b[0m" in terminal.shown


def test_output_to_a_file_does_not_reach_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, file = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    with ProgressBar(terminal.stream) as bar:
        bar.update("a", 1, 4, "text")
        print("an error", file=sys.stderr)
    assert file.getvalue() == "an error\n"
    assert terminal.close().lines == []


def test_a_line_follows_the_size_of_its_terminal() -> None:
    terminal = Terminal(200)
    with ProgressBar(terminal.stream) as bar:
        bar.update("a", 0.5, 1.0, PARTS)
        assert terminal.look().lines[0].endswith("step 17")
        terminal.resize(60)
        bar.update("b", 0.5, 1.0, PARTS)
        assert len(terminal.look().lines[-1]) < 60
    terminal.close()


def test_other_verbs_need_no_library_for_terminals() -> None:
    code = """
import sys
from hmoe.cli.progress import ProgressBar
from hmoe.train.console import Console
with ProgressBar() as bar:
    bar.update("a", 1, 1, "done")
    Console(bar).warn("look")
print([name for name in sys.modules if name.split(".")[0] in ("rich", "torch")])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("[]\n", "100% | done\nwarning: look\n")
