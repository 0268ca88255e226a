"""What a page is made of: runs by recipe, their logs, and what was found inside their models. Files alone, no torch."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hmoe.checkpoint.manifest import read_newest_state
from hmoe.errors import CheckpointError
from hmoe.runs.comparison import Comparison, compare_groups
from hmoe.runs.groups import RunGroup, read_run_groups
from hmoe.runs.log_rows import read_logs
from hmoe.runs.summary import RunSummary

FOLDER, INSPECTION, POSITIONS = "inspect", "inspection.json", "positions.json"
FORMAT = 1  # of inspection.json


@dataclass(frozen=True)
class RunRecord:
    """All that a page tells of one run.

    Attributes:
        group: name of its recipe.
        summary: of its training.
        rows: of metrics.jsonl up to its last step.
        seconds: training time by step, where a clock was kept.
        environment: of its newest checkpoint; {} without one.
        inspection: the content of its inspection.json; None where nobody has looked inside.
        positions: where its experts were chosen, with context.
    """

    group: str
    summary: RunSummary
    rows: Sequence[dict[str, Any]]
    seconds: dict[int, float]
    environment: dict[str, Any] = field(default_factory=dict)
    inspection: dict[str, Any] | None = None
    positions: Sequence[dict[str, Any]] = ()

    @cached_property
    def name(self) -> str:
        """The name of its folder."""
        return self.summary.path.resolve().name

    @property
    def widths(self) -> tuple[int, ...]:
        """Of what its router chooses from; () for a dense model."""
        moe = self.summary.config.model.moe
        return moe.routed_widths if moe else ()


@dataclass(frozen=True)
class ReportInputs:
    """Everything that one page is made from.

    Attributes:
        groups: seeds of one recipe each, in the order in which they were named.
        comparison: their rows and notes, by pairs with the baseline.
        baseline: name of the group that the others are told apart from; None for a single group.
        records: one for each run.
        words: under which the runs were named.
    """

    groups: Sequence[RunGroup]
    comparison: Comparison
    baseline: str | None
    records: Sequence[RunRecord]
    words: Sequence[str]

    def get_records(self, group: str) -> list[RunRecord]:
        """Return the runs of a recipe."""
        return [record for record in self.records if record.group == group]


def read_report_inputs(
    words: Sequence[str], baseline: str | None = None, say: Callable[[str], None] = lambda line: None
) -> ReportInputs:
    """Read all that is known of runs.

    Args:
        words: each a run folder, a folder of run folders, or NAME=FOLDER.
        baseline: name of the recipe that the others are compared with; chosen where it is None.
        say: called with what is left out.

    Raises:
        ConfigError: see `read_run_groups`; if the baseline is no recipe.
        CheckpointError: naming a damaged file.
    """
    groups = read_run_groups(words, say)
    if baseline is None and len(groups) > 1:
        baseline = choose_baseline(groups)
    comparison = compare_groups(groups, baseline)
    if baseline is not None:  # it may have been told by a folder
        without = [row["name"] for row in comparison.rows if "verdict" not in row]
        baseline = without[0] if without else baseline
    records = [_read_run(group.name, run) for group in groups for run in group.runs]
    return ReportInputs(groups, comparison, baseline, records, tuple(words))


def make_report_inputs(
    groups: Sequence[RunGroup], comparison: Comparison, baseline: str | None, words: Sequence[str]
) -> ReportInputs:
    """Return the inputs of a page on runs of which only summaries are known, as of the rows of a sweep."""
    records = [RunRecord(group.name, run, (), {}) for group in groups for run in group.runs]
    return ReportInputs(groups, comparison, baseline, records, words)


def choose_baseline(groups: Sequence[RunGroup]) -> str:
    """Return the recipe that others are told apart from: one of equal experts, else a dense one, else the first.

    Equal experts have a control of smaller ones, which activates as little as the unequal ones do; the larger ones
    have the parameters of the unequal ones.
    """
    equal = [group for group in groups if _count_widths(group) == 1]
    if equal and any(_count_widths(group) > 1 for group in groups):
        return max(equal, key=lambda group: group.runs[0].total_parameters).name
    dense = [group for group in groups if _count_widths(group) == 0]
    return (dense or list(groups))[0].name


def _count_widths(group: RunGroup) -> int:
    moe = group.runs[0].config.model.moe
    return len(set(moe.expert_widths)) if moe else 0


def _read_run(group: str, summary: RunSummary) -> RunRecord:
    metrics, timing = read_logs(summary.path, summary.step)
    state = read_newest_state(summary.path)
    folder = summary.path / FOLDER
    inspection = read_inspection(folder / INSPECTION)
    return RunRecord(
        group=group,
        summary=summary,
        rows=[row for _, row in metrics],
        seconds={row["step"]: row["seconds"] for _, row in timing if "seconds" in row},
        environment=state.get("environment", {}) if state else {},
        inspection=inspection,
        positions=_read_positions(folder / POSITIONS) if inspection else (),
    )


def read_inspection(file: Path) -> dict[str, Any] | None:
    """Return what was found inside a model; None where there is no such file.

    Raises:
        CheckpointError: if the file is damaged or of another format.
    """
    if not file.exists():
        return None
    content = _read_json(file)
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{file}: format = {content.get('format')}: must be {FORMAT}; "
            f"`hmoe inspect {file.parent.parent}` writes it anew"
        )
    tables = content.get("tables")
    is_whole = isinstance(tables, dict) and all(
        isinstance(rows, list) and all(isinstance(row, dict) for row in rows) for rows in tables.values()
    )
    if not is_whole or not all(isinstance(content.get(key), dict) for key in ("model", "text")):
        raise CheckpointError(f"{file}: damaged; `hmoe inspect {file.parent.parent}` writes it anew")
    return content


def _read_positions(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    positions = _read_json(file).get("positions")
    if not isinstance(positions, list) or not all(isinstance(row, dict) for row in positions):
        raise CheckpointError(f"{file}: damaged; `hmoe inspect {file.parent.parent}` writes it anew")
    return positions


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: damaged; `hmoe inspect {file.parent.parent}` writes it anew")
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of a table")
