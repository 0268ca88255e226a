"""`hmoe chat`: its input; conversations are in tests/serve."""

import sys
from pathlib import Path

import pytest

from hmoe.cli.main import run_command_line
from tests.train.helpers import run as train_run


class Terminal:
    def isatty(self) -> bool:
        return True


def test_chat_needs_neither_readline_nor_an_input(monkeypatch: pytest.MonkeyPatch) -> None:
    from hmoe.cli.chat import read_turns

    monkeypatch.setattr(sys, "stdin", None)
    assert list(read_turns()) == []

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setitem(sys.modules, "readline", None)
    answers = iter(["hello"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(answers))
    assert next(read_turns()) == "hello"


def test_on_a_terminal_the_first_line_says_who_answers_and_how_to_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_run(tmp_path / "look", "train.steps=1", "train.eval_every=0")
    lines = iter(["hi"])

    def read_line(prompt: str) -> str:
        for line in lines:
            return line
        raise EOFError  # Ctrl-D

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", read_line)
    words = ["chat", str(tmp_path / "look"), "--max-tokens", "2"]
    capsys.readouterr()
    assert run_command_line(words) == 0
    out, err = capsys.readouterr()
    assert "parameters" not in out
    (first,) = err.splitlines()
    assert first.startswith("hmoe: look, ")
    assert "k parameters; it has no chat template" in first
    assert first.endswith("every line is a turn, Ctrl-C stops an answer, Ctrl-D leaves")
    (tmp_path / "look" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert run_command_line(words) == 0
    assert "k parameters; every line is a turn" in capsys.readouterr().err
    monkeypatch.setattr(Terminal, "isatty", lambda self: False)
    monkeypatch.setattr(Terminal, "reconfigure", lambda self, errors: None, raising=False)
    monkeypatch.setattr(Terminal, "__iter__", lambda self: iter(()), raising=False)
    assert run_command_line(words) == 0
    assert capsys.readouterr().err == ""
