"""SQuAD's official files: articles of paragraphs of questions, nested in one JSON object."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hmoe.adapt.finetune.json_lines import describe_broken_line
from hmoe.errors import DataError

_HEAD_BYTES = 1 << 20  # in which the first article begins


def is_nested(path: Path) -> bool:
    """Whether a .json or .jsonl file holds articles rather than one question per row."""
    if path.suffix not in (".json", ".jsonl"):
        return False
    with path.open("rb") as file:
        return b'"paragraphs"' in file.read(_HEAD_BYTES)


def read_nested(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every question as a row of the flat format, with its place: "article 1, paragraph 2, question 3".

    The file is the official object with `data`, a list of articles, or an article per line.

    Raises:
        DataError: naming the place of what is not as SQuAD has it.
    """
    for a, article in enumerate(_articles(path), 1):
        for p, paragraph in enumerate(_part(article, "paragraphs", list, f"{path}: article {a}"), 1):
            place = f"article {a}, paragraph {p}"
            context = _part(paragraph, "context", str, f"{path}: {place}")
            for q, question in enumerate(_part(paragraph, "qas", list, f"{path}: {place}"), 1):
                where = f"{path}: {place}, question {q}"
                answers = [
                    _part(answer, "text", str, f"{where}, answer {i}")
                    for i, answer in enumerate(_part(question, "answers", list, where), 1)
                ]
                text = _part(question, "question", str, where)
                yield f"{place}, question {q}", {"question": text, "context": context, "answers": {"text": answers}}


def _articles(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        try:
            whole = json.loads(text)
        except ValueError:
            if path.suffix == ".json" and "\n{" not in text:
                raise
            return [json.loads(line) for line in text.split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        broken = None if isinstance(error, OSError) else describe_broken_line(path)
        raise DataError(f"{path}: cannot be read ({broken or f'{type(error).__name__}: {error}'})") from None
    if isinstance(whole, dict) and "data" in whole:
        whole = whole["data"]
    return whole if isinstance(whole, list) else [whole]


def _part(value: Any, key: str, kind: type, where: str) -> Any:
    """An entry of an object, checked."""
    if not isinstance(value, dict) or key not in value:
        raise DataError(f"{where}: has no {key}")
    if not isinstance(value[key], kind):
        raise DataError(f"{where}: {key} = {str(value[key])[:80]!r}, must be {'a list' if kind is list else 'text'}")
    return value[key]
