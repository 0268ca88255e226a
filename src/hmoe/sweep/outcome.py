"""What the rows of a sweep say: recipes compared with intervals, and what so many seeds could show. No torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from hmoe.config.run import RunConfig
from hmoe.runs.comparison import (
    Comparison,
    compare_groups,
    describe_verdict,
    pair_by_seed,
    refuse_difference,
    subtract_bits,
)
from hmoe.runs.groups import RunGroup
from hmoe.runs.summary import RunSummary
from hmoe.statistics.paired import compare_paired
from hmoe.sweep.plan import SweepPlan
from hmoe.sweep.rows import SweepRow, make_summary
from hmoe.sweep.runs import list_planned_runs, make_run_config

MOST_WIDTH_DIFFERENCE = 0.02  # of a control and its source


def select_rows(plan: SweepPlan, rows: Sequence[SweepRow]) -> list[SweepRow]:
    """Return the rows that are of runs of a plan: a table may hold others too."""
    names = {run.name for run in list_planned_runs(plan)}
    return [row for row in rows if row.run in names]


def summarize_rows(plan: SweepPlan, rows: Sequence[SweepRow], folder: Path) -> dict[str, RunSummary]:
    """Return what the finished runs of a plan were at their ends, by name, from rows alone.

    Args:
        plan: of the sweep.
        rows: of its table.
        folder: of the sweep, below which the run folders are or would be.
    """
    last = {row.run: row for row in rows if row.is_finished}
    summaries: dict[str, RunSummary] = {}
    for run in list_planned_runs(plan):
        if run.name not in last or (run.group.control_of is not None and run.source not in summaries):
            continue
        config: RunConfig = make_run_config(plan, run, summaries)
        summaries[run.name] = make_summary(last[run.name], config, folder / "runs" / run.name)
    return summaries


def compare_sweep(plan: SweepPlan, rows: Sequence[SweepRow], folder: Path) -> Comparison | None:
    """Compare the groups of a sweep; None where no run has finished."""
    summaries = summarize_rows(plan, rows, folder)
    groups = group_summaries(plan, summaries)
    if not groups:
        return None
    names = {group.name for group in groups}
    return compare_groups(groups, plan.baseline if plan.baseline in names else None)


def describe_controls(plan: SweepPlan, groups: Sequence[RunGroup], baseline: str | None) -> list[str]:
    """Return a line on each group of unequal experts beside its uniform control, and on controls of another width.

    Do widths that differ pay, or only less compute a token? Differences are taken seed by seed, with Holm's correction
    over these lines. One that the table has already, because either is the baseline, is not repeated.
    """
    by_name = {group.name: group for group in groups}
    pairs = {
        control.name: pair_by_seed(by_name[str(control.control_of)], by_name[control.name])
        for control in plan.groups
        if control.name in by_name
        and control.control_of in by_name
        and baseline not in (control.name, control.control_of)
    }
    refusals = {name: refuse_difference(own) for name, own in pairs.items()}
    differences = {
        name: [subtract_bits(*pair) for pair in own] for name, own in pairs.items() if refusals[name] is None
    }
    results = compare_paired(differences)
    holm = f" (Holm's correction over {len(results)} controls)" if len(results) > 1 else ""
    lines = []
    for name, refusal in refusals.items():
        head = f"{plan.get_group(name).control_of} beside its control {name}"
        if refusal:
            lines.append(f"{head}: {refusal}")
        else:
            mean = results[name].interval.mean
            lines.append(f"{head}: {mean:+.4f} bits per byte, {describe_verdict(results[name])}{holm}")
    return [*lines, *list_control_notes(plan, {run.path.name: run for group in groups for run in group.runs})]


def list_control_notes(plan: SweepPlan, summaries: Mapping[str, RunSummary]) -> list[str]:
    """Return a line for each control that did not activate the width of its source, as a top-p router may not."""
    notes = []
    for run in list_planned_runs(plan):
        if (
            run.source is None
            or run.group.control_of is None
            or not {run.name, run.source} <= summaries.keys()
        ):
            continue
        width, source = summaries[run.name].mean_width, summaries[run.source].mean_width
        if width and source and abs(width / source - 1) > MOST_WIDTH_DIFFERENCE:
            notes.append(
                f"{run.name}: activated {width:.0f} hidden units, {width / source - 1:+.1%} from {run.source}, whose "
                "control it is"
            )
    return notes


def group_summaries(plan: SweepPlan, summaries: Mapping[str, RunSummary]) -> list[RunGroup]:
    """Return the seeds of each group that is a row of the comparison and has a finished run."""
    groups = []
    for group in plan.groups:
        names = (f"{group.name}-{seed}" for seed in sorted(plan.seeds))
        runs = tuple(summaries[name] for name in names if name in summaries)
        if runs and not group.is_source:
            groups.append(RunGroup(group.name, runs))
    return groups
