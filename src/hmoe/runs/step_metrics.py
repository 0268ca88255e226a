"""What a run's metrics.jsonl says of one of its steps."""

from pathlib import Path
from typing import Any

from hmoe.errors import CheckpointError
from hmoe.runs.log_rows import METRICS, TIMING, read_rows
from hmoe.runs.log_seals import check_seals


def metrics_at(run: Path, step: int | None) -> dict[str, Any]:
    """The last whole row up to `step` (None: of all), with the newest validation up to there; {} for another folder.

    A run that was killed between checkpoints has rows of steps whose weights are lost.

    Raises:
        CheckpointError: if a row up to there is damaged, was changed or is missing.
    """
    if not (run / METRICS).exists():
        return {}
    metrics, timing = (
        [row for row in read_rows(run / name) if step is None or row[1]["step"] <= step] for name in (METRICS, TIMING)
    )
    problem = check_seals(run, metrics, timing)[1]
    if problem is not None:
        raise CheckpointError(f"{problem}; move {METRICS} away to go on without what it says of the training")
    last: dict[str, Any] = {}
    for _, row in metrics:
        last = {key: value for key, value in last.items() if key.startswith("validation_")} | row
    return last
