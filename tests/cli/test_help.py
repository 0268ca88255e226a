"""`-h` of every verb: types in words, the terminal's width, nothing cut; completion; no empty path."""

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from hmoe.cli.help import describe_limits, label_parameter, takes_path
from hmoe.cli.main import app, run_command_line


def list_verbs(command: Any = None, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    command = command or typer.main.get_command(app)
    children = getattr(command, "commands", {})
    if not children:
        yield words, command
    for name, child in children.items():
        yield from list_verbs(child, (*words, name))


VERBS = dict(list_verbs())


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_types_are_words_and_lines_are_whole(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run_command_line([*words, "-h"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert not re.search(r"<(?!/)(?!recipe name>)|list\[|\[x|range|x>=|\{\w+\}\.", text), text
    assert text.startswith(f"Usage: hmoe {' '.join(words)} [OPTIONS]")
    assert "-h, --help" in text


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_the_first_sentence_is_a_line_of_the_first_screen(words: tuple[str, ...]) -> None:
    assert len(VERBS[words].help.partition("\n")[0]) <= 52


def test_help_is_as_wide_as_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    longest = []
    for columns in ("80", "110", "300"):
        monkeypatch.setenv("COLUMNS", columns)
        assert run_command_line(["eval", "-h"]) == 0
        longest.append(max(map(len, capsys.readouterr().out.splitlines())))
    assert 70 < longest[0] <= 80 < longest[1] <= 110 < longest[2] <= 120


def test_labels_and_limits() -> None:
    parameters = {
        parameter.name: parameter
        for words in (("serve",), ("eval",), ("generate",), ("plan",), ("data", "prepare"))
        for parameter in VERBS[words].params
    }
    labels = {name: label_parameter(parameter) for name, parameter in parameters.items()}
    expected = {
        "recipe": "RECIPE", "prompt": "PROMPT", "text": "--text PATH", "port": "--port NUMBER",
        "memory": "--memory GB", "as_json": "--json", "path": "RUN|DIR", "inputs": "INPUT...",
        "host": "--host TEXT",
    }  # fmt: skip
    assert {name: labels[name] for name in expected} == expected
    assert describe_limits(parameters["port"]) == "0 to 65,535"
    assert describe_limits(parameters["limit"]) == "at least 1"
    assert describe_limits(parameters["seed"]) == "0 to 2^63 - 1"
    assert describe_limits(SimpleNamespace(min=None, max=5)) == "at most 5"
    assert describe_limits(parameters["host"]) == ""


def test_no_verb_takes_an_empty_path(capsys: pytest.CaptureFixture[str]) -> None:
    num_paths = 0
    for words, verb in VERBS.items():
        arguments = [p for p in verb.params if p.param_type_name == "argument"]
        for parameter in filter(takes_path, verb.params):
            is_option = parameter.param_type_name == "option"
            values = ["" if p is parameter else "x" for p in arguments]
            assert run_command_line([*words, *values, *([parameter.opts[-1], ""] if is_option else [])]) == 2
            name = parameter.opts[-1] if is_option else parameter.metavar
            assert capsys.readouterr().err.startswith(f"hmoe: error: {name}: is empty; ")
            num_paths += 1
    assert num_paths > 15


def complete(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    monkeypatch.setenv("_HMOE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
    assert run_command_line([]) == 0
    return capsys.readouterr().out.split()


def test_a_shell_completes_verbs_flags_and_recipes(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert {"plan", "train", "presets"} <= set(complete("hmoe ", monkeypatch, capsys))
    assert complete("hmoe pre", monkeypatch, capsys) == ["presets"]
    family = ["quickstart", "quickstart-control", "quickstart-dense", "quickstart-equal"]
    assert complete("hmoe plan qui", monkeypatch, capsys) == family
    assert complete("hmoe plan --mem", monkeypatch, capsys) == ["--memory"]
    assert complete("hmoe bench st", monkeypatch, capsys) == ["step"]
    (tmp_path / "tiny.yaml").touch()
    (tmp_path / "tiny-runs").mkdir()
    completions = complete("hmoe train tiny", monkeypatch, capsys)
    assert {"tiny", "tiny.yaml", "tiny-runs/"} <= set(completions)
    assert complete("hmoe train runs/", monkeypatch, capsys) == []  # the shell completes paths itself


def test_the_script_for_a_shell_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda *_: ("bash", "/bin/bash"))
    assert run_command_line(["--show-completion"]) == 0
    assert "_HMOE_COMPLETE=complete_bash" in capsys.readouterr().out
