"""`hmoe report SWEEP`: the page of a sweep, from its plan and its table."""

import dataclasses
from pathlib import Path
from typing import Any

from hmoe.cli.next_steps import NextStep, make_step, name_path
from hmoe.errors import ConfigError
from hmoe.units import format_bytes


def is_sweep_folder(path: Path) -> bool:
    """Return whether a folder is one that `hmoe sweep` made."""
    from hmoe.sweep.plan import PLAN

    return (path / PLAN).is_file()


def report_sweep(
    folder: Path, out: Path, title: str | None, baseline: str | None
) -> tuple[dict[str, Any], list[str], list[NextStep]]:
    """Write the page of a sweep; return what is said of it, as `print_report` takes it."""
    from hmoe.report.inputs import choose_baseline, make_report_inputs
    from hmoe.report.page import render_sweep_page, write_page
    from hmoe.runs.comparison import compare_groups
    from hmoe.sweep.outcome import group_summaries, select_rows, summarize_rows
    from hmoe.sweep.plan import PLAN, read_plan
    from hmoe.sweep.rows import ROWS, read_rows

    plan = read_plan(folder / PLAN)
    rows = select_rows(plan, read_rows(folder / ROWS))
    if not any(row.is_finished for row in rows):
        raise ConfigError(f"{folder}: none of its runs has finished yet")
    groups = group_summaries(plan, summarize_rows(plan, rows, folder))
    inputs = chosen = None
    if plan.kind in ("grid", "ablation"):
        if not groups:
            raise ConfigError(f"{folder}: none of the runs that it compares has finished yet")
        has_own = any(group.name == plan.baseline for group in groups)
        baseline = baseline or (plan.baseline if has_own else None)
        chosen = baseline if baseline or len(groups) < 2 else choose_baseline(groups)
        inputs = make_report_inputs(groups, compare_groups(groups, chosen), chosen, [str(folder)])
    elif baseline is not None:
        raise ConfigError(f"--baseline {baseline}: has no effect on a sweep of kind {plan.kind}; remove it")
    name = name_path(folder)
    steps = [make_step("sweep", "run", name), make_step("report", name, "--out", str(out))]
    sweep = _make_record(plan, rows, groups, chosen)
    title = title or f"hmoe sweep: {folder.resolve().name}"
    page = render_sweep_page(sweep, inputs, title, [step.command for step in steps])
    size = write_page(out, page)
    record = {"page": str(out), "bytes": size, "runs": len({row.run for row in rows}), "baseline": baseline}
    lines = [
        f"{out}: {record['runs']} runs on one page of {format_bytes(size)}",
        f"open {out.resolve().as_uri()} in a browser",
    ]
    return record, lines, steps[:1]


def _make_record(plan: Any, rows: Any, groups: Any, baseline: str | None) -> Any:
    """Return what the page tells of a sweep beside its comparison, from the plan and the rows that were read."""
    from hmoe.cli.sweep_outcome import format_choices
    from hmoe.report.sweep_sections import SweepRecord
    from hmoe.sweep.answer import (
        analyze_isoflop_power,
        analyze_sweep,
        describe_left_out,
        describe_power,
        list_loss_points,
        select_fitted_rows,
    )
    from hmoe.sweep.notes import describe_groups
    from hmoe.sweep.runs import list_planned_runs
    from hmoe.sweep.speed import measure_speeds
    from hmoe.sweep.tuning import RULE, describe_edges, rank_trials, tabulate_trials

    plain, planned = [dataclasses.asdict(row) for row in rows], len(list_planned_runs(plan))
    if plan.kind == "isoflop":
        result = analyze_sweep(plan, rows)
        limits = describe_left_out(plan, rows)
        if result is not None:
            fitted = select_fitted_rows(plan, rows)
            limits += describe_power(analyze_isoflop_power(fitted, result.reference), "at one size ")
        return SweepRecord(plain, planned, list_loss_points(plan, rows), result, limits)
    if plan.kind == "tuning":
        trials = rank_trials(plan, rows)
        sentences = [
            f"Rule: {RULE}.",
            f"Chosen: {' '.join(format_choices(trials)) or 'nothing yet'}.",
            *describe_edges(trials),
        ]
        return SweepRecord(plain, planned, sentences=sentences, trials=tabulate_trials(trials))
    speeds = [] if baseline is None else measure_speeds(plan, rows, baseline)
    return SweepRecord(
        plain,
        planned,
        sentences=describe_groups(plan, rows, groups, baseline),
        speeds=[dataclasses.asdict(speed) for speed in speeds],
    )
