"""metrics.jsonl and timing.jsonl of a run: rows in the order of their steps, and seals that show a later change.

A row of timing.jsonl counts the rows of metrics.jsonl that were written before it and holds a SHA-256 over those and all
rows of its own file, so that a row that was changed or lost is seen. Clocks are no part of a checkpoint, nor is the seal.
"""

import hashlib
import json
import math
from collections import deque
from collections.abc import Iterable, Iterator
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


class Seal:
    """Runs over the rows of both logs in the order in which they are written."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self.rows = 0

    def add_metrics(self, line: bytes) -> None:
        """Take in one row of metrics.jsonl."""
        self.rows += 1
        self._sha256.update(line)

    def sealed(self, timing: dict[str, Any]) -> dict[str, Any]:
        """One row of timing.jsonl, with the seal of everything up to it."""
        clocks = {key: value for key, value in timing.items() if key not in ("rows", "seal")}
        self._sha256.update(json.dumps(clocks).encode())
        return {**clocks, "rows": self.rows, "seal": self._sha256.hexdigest()[:16]}


def check_seals(run: Path, metrics: Iterable[Row], timing: Iterable[Row]) -> tuple[Seal, str | None]:
    """The seal of these rows, and in words how they differ from those that were written, None if they do not.

    The newest seal decides: once a change was told and training went on, it counts as it is.
    """
    seal, waiting, changed, written = Seal(), deque(metrics), 0, 0
    for _, row in timing:
        while waiting and waiting[0][1]["step"] <= row["step"]:
            seal.add_metrics(waiting.popleft()[0])
        if row == seal.sealed(row):
            changed = 0
        elif "seal" in row:  # rows written by earlier versions have none
            changed = changed or row["step"]
            written = row["rows"] if type(row.get("rows")) is int else 0
    rows = seal.rows
    for line, _ in waiting:
        seal.add_metrics(line)
    if not changed:
        return seal, None
    if rows < written:
        return seal, f"{run / METRICS}: {written - rows} of {written} rows are missing, the first before step {changed}"
    return seal, f"{run / METRICS} or {TIMING}: changed since step {changed} was written"


def _check_numbers(path: Path, number: int, row: dict[str, Any]) -> None:
    for name in _NUMBERS if path.name == TIMING else ():
        value = row.get(name, 0.0)
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            raise CheckpointError(
                f"{path}:{number}: {name} = {json.dumps(value)[:40]}: must be a number of at least 0; "
                "mend it, or move the file away to lose its rows"
            )
