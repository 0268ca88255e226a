"""The first screen: every verb once, in the order of use, whole in every terminal."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from hmoe import __version__
from hmoe.cli.first_screen import EXAMPLES, render_first_screen
from hmoe.cli.main import app, run_command_line

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def show_on_terminal(words: list[str], columns: int, lines: int, **environment: str) -> str:
    """What a command shows on a terminal of this size, which no variable tells."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("COLUMNS", "LINES", "NO_COLOR", "TERM")
    }
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    command = [sys.executable, "-m", "hmoe", *words]
    environment = {**kept, "TERM": "xterm", **environment}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            shown += piece
    os.close(ours)
    assert process.returncode == 0, shown
    return shown.decode().replace("\r\n", "\n")


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (200, 50)])
def test_it_fits_a_terminal(columns: int, lines: int) -> None:
    screen = show_on_terminal([], columns, lines)
    text = ANSI.sub("", screen)
    assert "\x1b[" in screen
    assert max(map(len, text.splitlines())) <= columns
    assert "..." not in text.partition("\n")[2]
    assert len(text.splitlines()) < lines  # the prompt has a line too
    assert ("Without making a single tensor" in text) == (columns == 200)


def test_it_has_no_colour_where_none_is_wanted() -> None:
    assert "\x1b" not in show_on_terminal([], 80, 24, NO_COLOR="1")


def test_all_ways_to_it_print_it(capsys: pytest.CaptureFixture[str]) -> None:
    screens = []
    for words in ([], ["-h"], ["--help"]):
        assert run_command_line(words) == 0
        screens.append(capsys.readouterr().out)
    assert screens[0] == screens[1] == screens[2]
    assert "\x1b" not in screens[0]
    assert "hmoe VERB -h" in screens[0]
    assert run_command_line(["--version"]) == 0
    assert capsys.readouterr().out == f"hmoe {__version__}\n"


def test_every_verb_stands_in_it_once() -> None:
    command: Any = typer.main.get_command(app)
    rows = render_first_screen(command, 78, False).partition(next(iter(EXAMPLES)))[0].splitlines()[1:]
    names = [re.split(r"  +", row[9:])[0] for row in rows]
    expected = [name for name in command.commands if name != "data"]
    assert sorted(names) == sorted([*expected, "data corpus", "data prepare", "data benchmarks"])
    order = [name for name in names if name in ("info", "plan", "train", "eval", "import", "serve", "bench")]
    assert order == ["info", "plan", "train", "eval", "import", "serve", "bench"]


def test_a_group_without_verbs_is_left_out_and_a_verb_without_group_is_not() -> None:
    verbs = {"train": SimpleNamespace(help="Train."), "dance": SimpleNamespace(help="Dance.\n\nOn toes.")}
    screen = render_first_screen(SimpleNamespace(commands=verbs), 70, False).splitlines()
    assert screen[1:3] == ["train  train  Train.", "more   dance  Dance. On toes."]


@pytest.mark.parametrize("width", [50, 78, 118])
def test_no_line_is_too_long_and_no_word_is_lost(width: int) -> None:
    command: Any = typer.main.get_command(app)
    screen = render_first_screen(command, width, False)
    assert max(map(len, screen.splitlines())) <= width
    for verb in command.commands.values():
        first = verb.help.partition("\n")[0]
        if verb.name != "data":
            assert first in " ".join(screen.split())


def test_the_examples_name_verbs() -> None:
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert all(example.split()[1] in verbs for example in EXAMPLES)
