"""`hmoe compare`: trained recipes side by side."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from hmoe.cli.table import Column, Table, choose_form, render_table
from hmoe.units import format_count, format_duration, format_flops

_Runs = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN...",
        help="Run folders, folders of run folders, or NAME=FOLDER; seeds of a recipe become one row.",
    ),
]
_Baseline = Annotated[
    str | None, typer.Option(metavar="NAME", help="Row from which the others are told apart, seed by seed.")
]
_AsJson = Annotated[bool, typer.Option("--json", help="One JSON object, with the values of each seed.")]
_AsMarkdown = Annotated[bool, typer.Option("--markdown", help="A Markdown table.")]
_AsLatex = Annotated[bool, typer.Option("--latex", help="A LaTeX tabular.")]
_AsCsv = Annotated[bool, typer.Option("--csv", help="Comma-separated exact values.")]


def compare_runs(
    runs: _Runs,
    baseline: _Baseline = None,
    as_json: _AsJson = False,
    as_markdown: _AsMarkdown = False,
    as_latex: _AsLatex = False,
    as_csv: _AsCsv = False,
) -> None:
    """Compare runs at equal FLOPs, with intervals."""
    from hmoe.runs.comparison import compare_groups
    from hmoe.runs.groups import read_run_groups

    form = choose_form(json=as_json, markdown=as_markdown, latex=as_latex, csv=as_csv)
    comparison = compare_groups(read_run_groups(runs), baseline)
    typer.echo(render_table(_lay_out(comparison.rows, comparison.notes), form), nl=False)


def _lay_out(rows: list[dict[str, Any]], notes: list[str]) -> Table:
    tasks = list(dict.fromkeys(task for row in rows for task in row["benchmarks"]))
    shown = [
        _add_shown_values(row) | {f"acc_{task}": row["benchmarks"].get(task) for task in tasks}
        for row in rows
    ]
    columns = [
        Column("name", "run", str, is_text=True),
        Column("num_seeds", "seeds"),
        Column("steps", "steps", "{:,.0f}".format),
        Column("tokens", "tokens", format_count),
        Column("flops", "FLOPs", _show_flops_of(rows)),
        Column("bits_per_byte", "bits/byte", "{:.4f}".format),
        Column("bits_per_byte_half_width", "±95%", "{:.4f}".format),
        Column("mean_activated_width", "units", "{:.0f}".format),
        Column("uniform_width", "uniform", "{:.0f}".format),
        Column("activated_parameters", "activated", format_count),
        Column("total_parameters", "parameters", format_count),
        Column("seconds", "time", format_duration),
        *(Column(f"acc_{task}", task, "{:.1%}".format) for task in tasks),
        Column("difference", "difference", "{:+.4f}".format),
        Column("difference_low", "from", "{:+.4f}".format),
        Column("difference_high", "to", "{:+.4f}".format),
        Column("adjusted_p", "p (Holm)", "{:.3f}".format),
        Column("sign_flip_p", "p (flips)", "{:.3f}".format),
        Column("verdict", "verdict", str, is_text=True),
    ]
    return Table(columns, shown, notes)


def _add_shown_values(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"num_seeds": len(row["seeds"])}


def _show_flops_of(rows: list[dict[str, Any]]) -> Callable[[float], str]:
    """Return how FLOPs are shown: with a star in rows that spent more or less than the rest."""
    marked = {row["flops"] for row in rows if row["flops_differ"]}
    return lambda flops: format_flops(flops) + "*" * (flops in marked)
