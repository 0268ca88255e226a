"""Where a file with a JSON object per line is broken: parsers count from 0, or anew in each block or line."""

import json
from pathlib import Path


def describe_broken_line(path: Path) -> str | None:
    """The first line that is not a JSON object, None if there is none or the file is not of one object per line."""
    if path.suffix not in (".jsonl", ".json"):
        return None
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        texts = ((number, text) for number, text in enumerate(lines, 1) if text.strip())
        for place, (number, text) in enumerate(texts):
            if _is_object(text):
                continue
            by_lines = path.suffix == ".jsonl" or place > 0  # else one value over many lines
            return f"line {number} is not a JSON object: {text.strip()[:80]!r}" if by_lines else None
    return None


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
