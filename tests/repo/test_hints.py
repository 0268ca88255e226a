"""What messages and docstrings tell a user to run exists: every `hmoe VERB` and every flag."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_help import VERBS

SOURCE = Path(__file__).parents[2] / "src" / "hmoe"
FILES = sorted(SOURCE.rglob("*.py"))
WORDS = {" ".join(words[:n]) for words in VERBS for n in (1, 2)}
FLAGS = {
    flag for verb in VERBS.values() for parameter in verb.params for flag in getattr(parameter, "opts", [])
} | {"--help", "--version", "--install-completion", "--show-completion", "-h"}


def list_strings(text: str) -> Iterator[str]:
    """The strings of a module; those of an f-string as one, with X for what is filled in."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(p.value) if isinstance(p, ast.Constant) else "X" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def find_wrong_hints(text: str, start: str = "`") -> list[str]:
    """Hints of verbs that do not exist; a hint stands after one of these starts, a pattern."""
    wrong = []
    for string in list_strings(text):
        for hint in re.findall(rf"(?:{start})hmoe ([a-z]+(?: [a-z]+)?)", string):
            first = hint.split()[0]
            verb = hint if first in ("data", "bench") and " " in hint else first
            wrong += [f"hmoe {verb}"] * (verb not in WORDS)
    return sorted(set(wrong))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_every_verb_that_is_named_exists(file: Path) -> None:
    # Verbs print next steps without backquotes too; elsewhere `hmoe` may begin any sentence.
    start = "`|: |; |see " if file.parent.name in ("cli", "train") else "`"
    contenders = {"hmoe loop", "hmoe equal", "hmoe triton", "hmoe eager loop"}  # names of what is timed
    assert set(find_wrong_hints(file.read_text(), start)) <= contenders


def test_a_wrong_hint_is_seen() -> None:
    text = '"""See `hmoe prezets`."""\nx = f"train: hmoe trian {1}"\ny = "`hmoe data korpus DIR`; `hmoe plan X`"\n'
    assert find_wrong_hints(text, "`|: ") == ["hmoe data korpus", "hmoe prezets", "hmoe trian"]


def test_every_flag_that_a_verb_names_exists() -> None:
    wrong = {
        f"{file.name}: {flag}"
        for file in sorted((SOURCE / "cli").glob("*.py"))
        for string in list_strings(file.read_text())
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+(?![\w.-])", string)
        if flag not in FLAGS
    }
    assert wrong == set()
