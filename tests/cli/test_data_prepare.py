"""`hmoe data prepare` as it is seen on a terminal."""

import re
import sys
from pathlib import Path

import pytest

from hmoe.cli.main import run_command_line
from tests.cli.terminal import Terminal


@pytest.mark.parametrize("columns", [20, 40, 80])
def test_the_result_stands_on_a_line_of_its_own(
    corpus_jsonl: Path, tmp_path: Path, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.chdir(tmp_path)
    terminal = Terminal(columns)
    monkeypatch.setattr(sys, "stdout", terminal.stream)
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    monkeypatch.setattr("hmoe.cli.progress._LIVE_SECONDS", 0.0)
    words = [
        corpus_jsonl.name,
        "--out",
        "d",
        "--tokenizer",
        "bytes",
        "--weight",
        "code=1",
        "--weight",
        "prose=1",
    ]
    assert run_command_line(["data", "prepare", *words]) == 0
    screen = terminal.close()
    bars = [line for lines in terminal.frames() for line in lines if re.search("[█░]", line)]
    assert bars
    assert all(len(bar) < columns for bar in bars)
    assert screen.lines[0].startswith("d: 2")
    assert not re.search("[█░]", "".join(screen.lines))
    assert any(line.startswith("hmoe: sequences may") for line in screen.lines)
