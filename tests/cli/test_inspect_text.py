"""`hmoe inspect RUN TEXT` on terminals, in pipes and as JSON."""

import json
import re
from pathlib import Path

import pytest

from hmoe.cli.main import run_command_line
from hmoe.runs.open_model import open_model
from tests.cli.test_first_screen import show_on_terminal
from tests.train.helpers import run

ANSI = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "r"
    run(folder, "train.steps=1", recipe="tiny-topp")
    return folder


def look(trained: Path, capfd: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[str, str]:
    assert run_command_line(["inspect", str(trained), *words]) == code
    shown = capfd.readouterr()
    return shown.out, shown.err


def test_a_pipe_gets_a_table_without_colours(trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out, _ = look(trained, capfd, "ab c")
    assert "\x1b" not in out
    rows = [line.split() for line in out.splitlines()[1:5]]
    assert [row[:2] for row in rows] == [["0", "'a'"], ["1", "'b'"], ["2", "'"], ["3", "'c'"]]


def test_more_tokens_than_the_model_was_made_for_are_noted(
    trained: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    context = open_model(trained, lambda line: None).context_length
    for length, is_noted in ((context, False), (context + 1, True)):
        assert run_command_line(["inspect", str(trained), "a" * length]) == 0
        note = f"reads {length:,} tokens at once, more than the {context:,} that the model was made for"
        assert (note in capfd.readouterr().err) is is_noted


def test_json_is_exact(trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = json.loads(look(trained, capfd, "ab", "--json")[0])
    assert [token["text"] for token in whole["tokens"]] == ["a", "b"]
    chosen = json.loads(look(trained, capfd, "ab", "--json", "--token", "b")[0])
    assert chosen["tokens"] == whole["tokens"][1:]
    experts = whole["tokens"][0]["experts"]
    ratio = sum(expert["width"] for expert in experts) / 2 / sum(whole["widths"])
    assert whole["tokens"][0]["activated_ratio"] == pytest.approx(ratio)


@pytest.mark.parametrize(("word", "index"), [("1", 1), ("b", 1), ("0", 0)])
def test_a_token_is_named_by_number_or_text(
    trained: Path, word: str, index: int, capfd: pytest.CaptureFixture[str]
) -> None:
    out, _ = look(trained, capfd, "ab", "--token", word)
    lines = out.splitlines()
    assert lines[0].startswith(f"token {index} ")
    assert all(
        re.fullmatch(r"  layer \d  expert \d  +\d+ units  gate \S+  probability \S+  █+", line)
        for line in lines[1:]
    )
    assert {line.split()[1] for line in lines[1:]} == {"0", "1"}
    assert all(len(line) <= 80 for line in lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["aba", "--token", "a"], "--token 'a': occurs 2 times; give one of the numbers 0, 2"),
        (["abc", "--token", "9"], "must be a number from 0 to 2 or the text of a token; nearest is"),
        ([""], "text: is empty"),
    ],
)
def test_errors_are_one_line(
    trained: Path, words: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    _, err = look(trained, capfd, *words, code=2)
    assert message in err
    assert err.count("\n") == 1


def test_a_terminal_gets_colours_unless_it_wants_none(trained: Path) -> None:
    words = ["inspect", str(trained), "She was not at home."]
    coloured = show_on_terminal(words, 40, 20)
    assert "38;5;" in coloured
    shown = ANSI.sub("", re.sub(r"\r[^\n]*\x1b\[K", "", coloured))
    assert "She was not at home." in shown
    assert "activated hidden units:" in shown
    assert "38;" not in show_on_terminal(words, 80, 20, NO_COLOR="1")
