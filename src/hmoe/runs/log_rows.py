"""metrics.jsonl and timing.jsonl of a run: rows in the order of their steps."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hmoe.errors import CheckpointError

METRICS, TIMING = "metrics.jsonl", "timing.jsonl"
_NUMBERS = ("seconds", "tokens_per_second")
Row = tuple[bytes, dict[str, Any]]


def read_rows(path: Path) -> Iterator[Row]:
    """(line, values) of every whole row; a torn one can only be the last.

    Raises:
        CheckpointError: naming the line that is damaged.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    before = 0
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            whole = line.endswith(b"\n") and type(row["step"]) is int and row["step"] > before
        except (ValueError, KeyError, TypeError, RecursionError):
            whole = False
        if not whole and number < len(lines):
            raise CheckpointError(f"{path}:{number}: damaged line; mend it, or move the file away to lose its rows")
        if whole:
            _check_numbers(path, number, row)
            before = row["step"]
            yield line, row


def seconds_at(run: Path, step: int) -> float:
    """Training time of a run up to a step."""
    rows = [row for _, row in read_rows(run / TIMING) if row["step"] <= step]
    return float(rows[-1].get("seconds", 0.0)) if rows else 0.0


def _check_numbers(path: Path, number: int, row: dict[str, Any]) -> None:
    for name in _NUMBERS if path.name == TIMING else ():
        value = row.get(name, 0.0)
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            raise CheckpointError(
                f"{path}:{number}: {name} = {json.dumps(value)[:40]}: must be a number of at least 0; "
                "mend it, or move the file away to lose its rows"
            )
