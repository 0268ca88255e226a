"""What a run's metrics.jsonl says of one of its steps."""

import json
from pathlib import Path
from typing import Any


def metrics_at(run: Path, step: int | None) -> dict[str, Any]:
    """The last whole row up to `step` (None: of all), with the newest validation up to there; {} for another folder.

    A run that was killed between checkpoints has rows of steps whose weights are lost.
    """
    found: dict[str, Any] = {}
    try:
        lines = (run / "metrics.jsonl").read_bytes().splitlines()
    except OSError:
        return found
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            break
        if step is None or row["step"] <= step:
            found = {key: value for key, value in found.items() if key.startswith("validation_")} | row
    return found
