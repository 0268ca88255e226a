"""How a sweep ends: its comparison, its chosen settings or its fits, as a table or as JSON."""

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import typer

from hmoe.cli.compare import lay_out_comparison
from hmoe.cli.next_steps import make_step, name_path, print_steps
from hmoe.cli.output import print_note
from hmoe.cli.table import Column, Table, render_table
from hmoe.sweep.answer import (
    analyze_isoflop_power,
    analyze_sweep,
    describe_left_out,
    describe_power,
    select_fitted_rows,
)
from hmoe.sweep.notes import describe_groups
from hmoe.sweep.outcome import compare_sweep, group_summaries, summarize_rows
from hmoe.sweep.plan import SweepPlan
from hmoe.sweep.rows import ROWS, SweepRow
from hmoe.sweep.tuning import RULE, Trial, describe_edges, list_choices, rank_trials, tabulate_trials
from hmoe.units import format_count, format_flops


def print_outcome(plan: SweepPlan, folder: Path, rows: Sequence[SweepRow], as_json: bool) -> None:
    """Print what the rows of a sweep say, by its kind.

    Args:
        plan: of the sweep.
        folder: in which the table lies.
        rows: of the table.
        as_json: for programs.
    """
    answers: dict[str, Callable[[SweepPlan, Path, Sequence[SweepRow]], Table | None]] = {
        "tuning": _tabulate_trials,
        "isoflop": _tabulate_isoflop,
    }
    table = answers.get(plan.kind, _tabulate_comparison)(plan, folder, rows)
    failed = [f"{row.run}: {row.status}" for row in rows if not row.is_finished]
    if table is None:
        failed += describe_left_out(plan, rows) if plan.kind == "isoflop" else []
        if as_json:
            typer.echo(json.dumps({"rows": [], "notes": failed}))
        for note in failed if not as_json else ():
            print_note(note)
        return
    table = Table(table.columns, table.rows, [*table.notes, *failed])
    typer.echo(render_table(table, "json" if as_json else "text"), nl=False)
    if not as_json:
        print_note(f"{folder / ROWS}: {len(rows)} rows")
        path = name_path(folder)
        print_steps([make_step("report", path, "--out", f"{path}.html")] if _can_draw() else [])


def _can_draw() -> bool:
    return all(map(importlib.util.find_spec, ("matplotlib", "scipy", "jinja2")))


def _tabulate_comparison(plan: SweepPlan, folder: Path, rows: Sequence[SweepRow]) -> Table | None:
    comparison = compare_sweep(plan, rows, folder)
    if comparison is None:
        return None
    groups = group_summaries(plan, summarize_rows(plan, rows, folder))
    has_baseline = any(group.name == plan.baseline for group in groups)
    notes = describe_groups(plan, rows, groups, plan.baseline if has_baseline else None)
    return lay_out_comparison(comparison.rows, [*comparison.notes, *notes])


def _tabulate_trials(plan: SweepPlan, folder: Path, rows: Sequence[SweepRow]) -> Table | None:
    trials = rank_trials(plan, rows)
    lines = tabulate_trials(trials)
    fixed = ("family", "loss", "behind", "is_chosen")
    columns = [
        Column("family", "family", str, is_text=True),
        # By the last word of load_balance, parameter_penalty, ...: rows are to fit on a line.
        *(Column(name, name.rpartition("_")[2], "{:g}".format) for name in lines[0] if name not in fixed),
        Column("loss", "loss", "{:.4f}".format),
        Column("behind", "behind by", "{:.4f}".format),
        Column("is_chosen", "chosen", lambda is_chosen: "yes" if is_chosen else "", is_text=True),
    ]
    notes = [
        "validation loss in nats per token, mean over seeds; behind the family's best",
        f"rule: {RULE}",
        *format_choices(trials),
    ]
    if len(plan.seeds) == 1:
        notes.append("one seed: what a setting is ahead by has no interval and may be chance")
    return Table(columns, lines, [*notes, *describe_edges(trials)])


def format_choices(trials: Sequence[Trial]) -> list[str]:
    """Return the chosen settings as options that the other sweeps take."""
    return [f"--{name} {value}" for name, value in list_choices(trials)]


def _tabulate_isoflop(plan: SweepPlan, folder: Path, rows: Sequence[SweepRow]) -> Table | None:
    from hmoe.statistics.isoflop_words import describe_isoflop, tabulate_isoflop

    result = analyze_sweep(plan, rows)
    if result is None:
        return None
    columns = [
        Column("family", "family", str, is_text=True),
        Column("budget", "FLOPs", format_flops),
        Column("optimal_size", "best size", format_count),
        Column("optimal_size_low", "from", format_count),
        Column("optimal_size_high", "to", format_count),
        Column("parabola_size", "by parabola", format_count),
        Column("frontier_loss", "least loss", "{:.4f}".format),
        Column("frontier_loss_low", "from", "{:.4f}".format),
        Column("frontier_loss_high", "to", "{:.4f}".format),
        Column("leverage", "leverage", "{:.3f}".format),
        Column("leverage_low", "from", _show_end),
        Column("leverage_high", "to", _show_end),
        Column("leverage_in_seconds", "in seconds", "{:.3f}".format),
        Column("leverage_in_seconds_low", "from", _show_end),
        Column("leverage_in_seconds_high", "to", _show_end),
        Column("extrapolated", "extrapolated", str, is_text=True),
    ]
    legend = (
        "size: FLOPs per token / 6; leverage: FLOPs that "
        f"{result.reference} needs for the same loss, by the FLOPs spent"
    )
    limits = [
        *describe_left_out(plan, rows),
        *describe_power(
            analyze_isoflop_power(select_fitted_rows(plan, rows), result.reference), "at one size "
        ),
    ]
    return Table(columns, tabulate_isoflop(result), [legend, *describe_isoflop(result), *limits])


def _show_end(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3f}"
