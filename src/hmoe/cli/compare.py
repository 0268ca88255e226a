"""`hmoe compare`: trained recipes side by side."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from hmoe.cli.output import print_note
from hmoe.cli.table import FOR_PEOPLE, Column, Table, choose_form, render_table
from hmoe.units import format_count, format_duration, format_flops

_Runs = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN...",
        help="Run folders, folders of run folders, or NAME=FOLDER; seeds of a recipe become one row.",
    ),
]
_Baseline = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Row, or its folder, from which the others are told apart, seed by seed."
    ),
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
    comparison = compare_groups(read_run_groups(runs, print_note), baseline)
    typer.echo(render_table(lay_out_comparison(comparison.rows, comparison.notes), form), nl=False)
    if form == "csv":  # which has no place for them
        for note in comparison.notes:
            print_note(note)


def lay_out_comparison(rows: list[dict[str, Any]], notes: list[str]) -> Table:
    """Return the table of a comparison."""
    tasks = list(dict.fromkeys(task for row in rows for task in row["benchmarks"]))
    shown = [
        row
        | {"shown_seeds": _show_seeds(row)}
        | {f"acc_{task}": row["benchmarks"].get(task) for task in tasks}
        for row in rows
    ]
    columns = [
        Column("name", "run", str, is_text=True),
        Column("shown_seeds", "seeds", str, forms=FOR_PEOPLE),
        *(Column(name, name, forms=("csv",)) for name in ("num_seeds", "num_validated")),
        Column("steps", "steps", "{:,.0f}".format),
        Column("tokens", "tokens", format_count),
        Column("flops", "FLOPs", _show_flops_of(rows)),
        Column("flops_differ", "flops_differ", forms=("csv",)),
        Column("bits_per_byte", "bits/byte", "{:.4f}".format),
        Column("bits_per_byte_half_width", "±95%", "{:.4f}".format),
        Column("nats_per_token", "nats_per_token", forms=("csv",)),
        Column("mean_activated_width", "units", "{:.0f}".format),
        Column("uniform_width", "uniform", "{:.0f}".format),
        Column("activated_parameters", "activated", format_count),
        Column("total_parameters", "parameters", format_count),
        Column("seconds", "time", format_duration),
        *(Column(f"acc_{task}", task, "{:.1%}".format) for task in tasks),
        *_list_difference_columns(),
    ]
    legend = "units: hidden units that a token activated per MoE layer; uniform: those of a router without preference"
    return Table(columns, shown, [*([legend] if any(row["uniform_width"] for row in rows) else []), *notes])


def _list_difference_columns() -> list[Column]:
    return [
        Column("pairs", "pairs", forms=("csv",)),
        Column("difference", "difference", "{:+.4f}".format),
        Column("difference_low", "from", "{:+.4f}".format),
        Column("difference_high", "to", "{:+.4f}".format),
        Column("confidence", "confidence", forms=("csv",)),
        Column("adjusted_p", "p (Holm)", "{:.3f}".format),
        Column("sign_flip_p", "p (flips)", "{:.3f}".format),
        Column("detectable_difference", "detectable_difference", forms=("csv",)),
        Column("verdict", "verdict", str, is_text=True),
    ]


def _show_seeds(row: dict[str, Any]) -> str:
    """Return how many seeds there are, and of how many the bits per byte are where some have none."""
    whole = row["num_validated"] == row["num_seeds"]
    return f"{row['num_seeds']}" if whole else f"{row['num_validated']} of {row['num_seeds']}"


def _show_flops_of(rows: list[dict[str, Any]]) -> Callable[[float], str]:
    """Return how FLOPs are shown: with a star in rows that spent more or less than the rest."""
    marked = {row["flops"] for row in rows if row["flops_differ"]}
    return lambda flops: format_flops(flops) + "*" * (flops in marked)
