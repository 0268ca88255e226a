"""Seals that show a later change of metrics.jsonl or timing.jsonl.

A row of timing.jsonl counts the rows of metrics.jsonl that were written before it and holds a SHA-256 over
those and all rows of its own file, so that a row that was changed or lost is seen. Clocks are no part of a
checkpoint, nor is the seal.
"""

import hashlib
import json
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hmoe.runs.log_rows import METRICS, TIMING, Row, read_logs


class LogSeal:
    """A running SHA-256 over the rows of both logs, in the order in which they are written.

    Attributes:
        rows: rows of metrics.jsonl so far.
    """

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self.rows = 0

    def add_metrics(self, line: bytes) -> None:
        """Take in one row of metrics.jsonl."""
        self.rows += 1
        self._sha256.update(line)

    def sealed(self, timing: dict[str, Any]) -> dict[str, Any]:
        """Take in one row of timing.jsonl, and return it with the seal of everything up to it."""
        clocks = {key: value for key, value in timing.items() if key not in ("rows", "seal")}
        self._sha256.update(json.dumps(clocks).encode())
        return {**clocks, "rows": self.rows, "seal": self._sha256.hexdigest()[:16]}


def check_seals(run: Path, metrics: Iterable[Row], timing: Iterable[Row]) -> tuple[LogSeal, str | None]:
    """Return the seal of these rows, and how they differ from those that were written, None if they do not.

    The newest seal decides: once a change was told and training went on, it counts as it is.
    """
    seal, waiting, changed, written = LogSeal(), deque(metrics), 0, 0
    for _, row in timing:
        while waiting and waiting[0][1]["step"] <= row["step"]:
            seal.add_metrics(waiting.popleft()[0])
        if row == seal.sealed(row):
            changed = 0
        elif "seal" in row:  # rows written by earlier versions have none
            changed = changed or row["step"]
            written = row["rows"] if type(row.get("rows")) is int else 0
    rows = seal.rows
    for line, _ in waiting:  # after the last clock: no seal covers them yet
        seal.add_metrics(line)
    if not changed:
        return seal, None
    if rows < written:
        missing = f"{written - rows} of {written} rows are missing"
        return seal, f"{run / METRICS}: {missing}, the first before step {changed}"
    return seal, f"{run / METRICS} or {TIMING}: changed since step {changed} was written"


def describe_log_change(run: Path, step: int) -> str | None:
    """Return how the logs of a run up to a step differ from those that were written, None if they do not.

    Raises:
        CheckpointError: naming a line that is damaged.
    """
    return check_seals(run, *read_logs(run, step))[1]
