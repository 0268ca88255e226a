"""Accuracies of benchmarks that were measured into a run folder."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hmoe.errors import CheckpointError
from hmoe.runs.summary import RunSummary

RESULTS = "results.json"


def read_benchmark_scores(runs: Sequence[RunSummary]) -> dict[str, float]:
    """Return the mean accuracy of each task over the seeds, for tasks that all of them were evaluated on.

    Results lie in a folder inside the run folder, as `hmoe eval RUN --tasks all --out RUN/benchmarks` writes them;
    those of another step than the run's last one are left out.

    Raises:
        CheckpointError: naming a file that is no result of an evaluation.
    """
    tables = [_read_scores(run) for run in runs]
    common = [task for task in tables[0] if all(task in table for table in tables)]
    return {task: statistics.fmean(table[task] for table in tables) for task in common}


def _read_scores(run: RunSummary) -> dict[str, float]:
    scores: dict[str, float] = {}
    for file in sorted(run.path.glob(f"*/{RESULTS}")):
        result = _read_result(file)
        if result.get("training_step") != run.step:
            continue
        for task, record in result["tasks"].items():
            if "acc" in record["metrics"]:
                scores[task] = record["metrics"]["acc"]
    return scores


def _read_result(file: Path) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(file.read_bytes())
        if all(isinstance(record["metrics"], dict) for record in result["tasks"].values()):
            return result
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise CheckpointError(
        f"{file}: is no result of an evaluation; move it away, and its tasks have no column"
    )
