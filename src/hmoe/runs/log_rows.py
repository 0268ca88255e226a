"""The rows of metrics.jsonl and timing.jsonl of a run, by step: the whole package reads them here."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hmoe.errors import CheckpointError

METRICS, TIMING = "metrics.jsonl", "timing.jsonl"
_TAIL_BYTES = 1 << 20  # of a log, which hold its last row
_CLOCKS = ("seconds", "tokens_per_second")
Row = tuple[bytes, dict[str, Any]]


def read_log_rows(path: Path, last_step: int | None = None) -> Iterator[Row]:
    """Yield (line, values) of each row of a log up to a step, by default of all, but no torn last one.

    Raises:
        CheckpointError: naming the line that is damaged, also one after that step.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    before = 0
    for index, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            whole = line.endswith(b"\n") and type(row["step"]) is int and row["step"] > before
        except (ValueError, KeyError, TypeError, RecursionError):
            whole = False
        if not whole and index < len(lines):
            raise CheckpointError(
                f"{path}:{index}: damaged line; mend it, or move the file away to lose its rows"
            )
        if whole:
            _check_clocks(path, index, row)
            before = row["step"]
            if last_step is None or before <= last_step:
                yield line, row


def read_logs(run: Path, last_step: int | None = None) -> tuple[list[Row], list[Row]]:
    """Return the rows of metrics.jsonl and those of timing.jsonl of a run up to a step, by default all.

    Raises:
        CheckpointError: naming the line that is damaged.
    """
    return list(read_log_rows(run / METRICS, last_step)), list(read_log_rows(run / TIMING, last_step))


def read_newest_row(run: Path) -> dict[str, Any]:
    """Return the last whole row of metrics.jsonl while it is written; {} before the first.

    Only the end of the file is read, and nothing is checked: for those who look on.
    """
    try:
        with (run / METRICS).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and row.keys() >= {"step", "tokens", "flops"}:
            return row
    return {}


def read_training_seconds(run: Path, step: int) -> float:
    """Return the training time of a run up to a step, in seconds; 0 where no clock was kept."""
    rows = [row for _, row in read_log_rows(run / TIMING, step)]
    return float(rows[-1].get("seconds", 0.0)) if rows else 0.0


def _check_clocks(path: Path, index: int, row: dict[str, Any]) -> None:
    """Raise CheckpointError for a clock of timing.jsonl that is no number: budgets are counted from it."""
    for name in _CLOCKS if path.name == TIMING else ():
        value = row.get(name, 0.0)
        # By type, since True is an int for isinstance; NaN compares as false.
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            raise CheckpointError(
                f"{path}:{index}: {name} = {json.dumps(value)[:40]}: must be a number of at least 0; "
                "mend it, or move the file away to lose its rows"
            )
