"""Where a file with a JSON object per line is broken: parsers count from 0, or anew in each block or line."""

import json
from pathlib import Path


def describe_broken_line(path: Path) -> str | None:
    """Return which line is the first that is not a JSON object, as a part of a message.

    None if there is no such line, or the file does not hold one object per line.
    """
    if path.suffix not in (".jsonl", ".json"):
        return None
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        filled_lines = ((line_index, text) for line_index, text in enumerate(lines, 1) if text.strip())
        for position, (line_index, text) in enumerate(filled_lines):
            if _is_object(text):
                continue
            # A .json file whose first line is no object is one value over many lines.
            is_object_per_line = path.suffix == ".jsonl" or position > 0
            return (
                f"line {line_index} is not a JSON object: {text.strip()[:80]!r}"
                if is_object_per_line
                else None
            )
    return None


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
