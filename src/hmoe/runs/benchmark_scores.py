"""Accuracies of benchmarks that were measured into run folders."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hmoe.errors import CheckpointError
from hmoe.runs.summary import RunSummary
from hmoe.storage import read_json

RESULTS = "results.json"
METRIC = "acc"  # all tasks of the papers have it; the HMoE paper does not say which accuracy it prints
_Scores = dict[str, tuple[float, str]]  # task -> accuracy, and what must be equal for two to be compared


def read_benchmark_scores(groups: Sequence[Sequence[RunSummary]]) -> tuple[list[dict[str, float]], list[str]]:
    """Return the mean accuracy of each task for each group of seeds, and what was left out, a line each.

    Results lie in a folder inside the run folder, as `hmoe eval RUN --tasks all --out RUN/benchmarks` writes them;
    those of another step than the run's last one do not count, nor a task that only some seeds of a group were
    evaluated on. A task whose options or data differ between runs has no value at all.

    Raises:
        CheckpointError: naming a file that is no result of an evaluation.
    """
    notes: list[str] = []
    tables = [[_read_scores(run, notes) for run in runs] for runs in groups]
    settings: dict[str, set[str]] = {}
    for scores in (scores for table in tables for scores in table):
        for task, (_, setting) in scores.items():
            settings.setdefault(task, set()).add(setting)
    mixed = {task for task, values in settings.items() if len(values) > 1}
    notes += [
        f"{task}: was measured with different options or data, so it has no column" for task in sorted(mixed)
    ]
    means = []
    for runs, table in zip(groups, tables, strict=True):
        tasks = dict.fromkeys(task for scores in table for task in scores if task not in mixed)
        whole = [task for task in tasks if all(task in scores for scores in table)]
        notes += [
            f"{runs[0].path}: {task} was not measured on all seeds" for task in tasks if task not in whole
        ]
        means.append({task: statistics.fmean(scores[task][0] for scores in table) for task in whole})
    return means, notes


def _read_scores(run: RunSummary, notes: list[str]) -> _Scores:
    scores: _Scores = {}
    for file in sorted(run.path.glob(f"*/{RESULTS}")):
        result = _read_result(file)
        if result.get("training_step") != run.step:
            notes.append(f"{file}: is of step {result.get('training_step')}, not of the last one, {run.step}")
            continue
        for task, record in result["tasks"].items():
            if METRIC in record["metrics"]:
                setting = json.dumps([result.get("options"), record.get("data")], sort_keys=True)
                scores[task] = (record["metrics"][METRIC], setting)
    return scores


def _read_result(file: Path) -> dict[str, Any]:
    try:
        result: dict[str, Any] = read_json(file)
        if all(isinstance(record["metrics"], dict) for record in result["tasks"].values()):
            return result
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise CheckpointError(
        f"{file}: is no result of an evaluation; move it away, and its tasks have no column"
    )
