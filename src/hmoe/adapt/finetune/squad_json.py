"""SQuAD's official files: articles that hold paragraphs that hold questions, nested in one JSON object."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hmoe.adapt.finetune.json_lines import describe_broken_line
from hmoe.errors import DataError

_HEAD_BYTES = 1 << 20  # enough of a file for its first article to begin in


def is_squad_json(path: Path) -> bool:
    """Return whether a .json or .jsonl file holds articles rather than one question per row."""
    if path.suffix not in (".json", ".jsonl"):
        return False
    with path.open("rb") as file:
        return b'"paragraphs"' in file.read(_HEAD_BYTES)


def read_squad_json(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every question as a row of the flat format, with its place: "article 1, paragraph 2, question 3".

    Args:
        path: the official object with `data`, a list of articles; or that list; or a file with an article per
            line.

    Raises:
        DataError: naming the place of what is not as SQuAD has it.
    """
    for a, article in enumerate(_read_articles(path), 1):
        for p, paragraph in enumerate(_get_entry(article, "paragraphs", list, f"{path}: article {a}"), 1):
            place = f"article {a}, paragraph {p}"
            context = _get_entry(paragraph, "context", str, f"{path}: {place}")
            for q, question in enumerate(_get_entry(paragraph, "qas", list, f"{path}: {place}"), 1):
                row = _flatten_question(question, context, f"{path}: {place}, question {q}")
                yield f"{place}, question {q}", row


def _flatten_question(question: Any, context: str, where: str) -> dict[str, Any]:
    answers = _get_entry(question, "answers", list, where)
    texts = [_get_entry(answer, "text", str, f"{where}, answer {i}") for i, answer in enumerate(answers, 1)]
    text = _get_entry(question, "question", str, where)
    return {"question": text, "context": context, "answers": {"text": texts}}


def _read_articles(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        try:
            tree = json.loads(text)
        except ValueError:
            # Either an article per line, or one object that is broken; only the former has lines that begin
            # an object.
            if path.suffix == ".json" and "\n{" not in text:
                raise
            return [json.loads(line) for line in text.split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        broken = None if isinstance(error, OSError) else describe_broken_line(path)
        raise DataError(f"{path}: cannot be read ({broken or f'{type(error).__name__}: {error}'})") from None
    if isinstance(tree, dict) and "data" in tree:
        tree = tree["data"]
    return tree if isinstance(tree, list) else [tree]


def _get_entry(value: Any, key: str, kind: type, where: str) -> Any:
    """Return an entry of a JSON object; raise DataError if the object lacks it, or it is of another kind."""
    if not isinstance(value, dict) or key not in value:
        raise DataError(f"{where}: has no {key}")
    if not isinstance(value[key], kind):
        raise DataError(
            f"{where}: {key} = {str(value[key])[:80]!r}, must be {'a list' if kind is list else 'text'}"
        )
    return value[key]
