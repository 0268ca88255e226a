"""`hmoe chat`: its input; conversations are in tests/serve."""

import sys

import pytest


def test_chat_needs_neither_readline_nor_an_input(monkeypatch: pytest.MonkeyPatch) -> None:
    from hmoe.cli.chat import read_turns

    monkeypatch.setattr(sys, "stdin", None)
    assert list(read_turns()) == []

    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setitem(sys.modules, "readline", None)
    answers = iter(["hello"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(answers))
    assert next(read_turns()) == "hello"
