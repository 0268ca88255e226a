"""What a run's metrics.jsonl says of one of its steps."""

from pathlib import Path
from typing import Any

from hmoe.errors import CheckpointError
from hmoe.runs.log_rows import METRICS, read_logs
from hmoe.runs.log_seals import check_seals


def read_step_metrics(run: Path, step: int | None) -> dict[str, Any]:
    """Return the last whole row up to `step` (None: of all), with the newest validation up to there.

    A run that was killed between checkpoints has rows of steps whose weights are lost. A folder without
    metrics.jsonl gives {}.

    Raises:
        CheckpointError: if a row up to there is damaged, was changed or is missing.
    """
    if not (run / METRICS).exists():
        return {}
    metrics, timing = read_logs(run, step)
    problem = check_seals(run, metrics, timing)[1]
    if problem is not None:
        raise CheckpointError(f"{problem}; move {METRICS} away to go on without what it says of the training")
    newest: dict[str, Any] = {}
    for _, row in metrics:
        # Validation is not part of every row, so that of an earlier one stays until the next.
        newest = {key: value for key, value in newest.items() if key.startswith("validation_")} | row
    return newest
