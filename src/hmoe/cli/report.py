"""`hmoe report`: trained runs, and what was found inside them, as one page."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hmoe.cli.next_steps import NextStep, make_step, name_path, print_report
from hmoe.cli.output import print_note
from hmoe.cli.report_sweep import is_sweep_folder, report_sweep
from hmoe.units import format_bytes

if TYPE_CHECKING:
    from hmoe.report.inputs import ReportInputs

_Runs = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN...",
        help="Run folders, folders of run folders, or NAME=FOLDER; seeds of a recipe are one. Or one sweep folder.",
    ),
]
_Out = Annotated[
    Path, typer.Option(metavar="FILE", help="The page; one of ours that lies there is replaced.")
]
_Title = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Title of the page. Default: the recipes' names.")
]
_Baseline = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Recipe, or its folder, that the others are compared with. Default: one of equal experts, or a dense one.",
    ),
]
_AsJson = Annotated[bool, typer.Option("--json", help="What was written, as one JSON object.")]


def write_report(
    runs: _Runs, out: _Out, title: _Title = None, baseline: _Baseline = None, as_json: _AsJson = False
) -> None:
    """Write one page on runs: results, training, experts.

    Opens from disk, asks no network.
    """
    from hmoe.report.inputs import read_report_inputs
    from hmoe.report.page import check_target, render_page, write_page

    check_target(out)
    if len(runs) == 1 and is_sweep_folder(Path(runs[0])):
        print_report(*report_sweep(Path(runs[0]), out, title, baseline), as_json)
        return
    inputs = read_report_inputs(runs, baseline, print_note)
    size = write_page(out, render_page(inputs, title, _list_commands(inputs, out)))
    record = {"page": str(out), "bytes": size, "runs": len(inputs.records), "baseline": inputs.baseline}
    what = f"{len(inputs.records)} run{'s' * (len(inputs.records) != 1)}"
    lines = [
        f"{out}: {what} on one page of {format_bytes(size)}",
        f"open {out.resolve().as_uri()} in a browser",
    ]
    print_report(record, lines, _list_steps(inputs), as_json)


def _list_commands(inputs: "ReportInputs", out: Path) -> list[str]:
    """Return what trains the runs again, and makes their page."""
    trains = [
        make_step("train", run.summary.path / "config.yaml", "--run", f"{run.name}-again").command
        for run in inputs.records
    ]
    baseline = ["--baseline", inputs.baseline] if inputs.baseline else []
    return [*trains, make_step("report", *inputs.words, *baseline, "--out", out).command]


def _list_steps(inputs: "ReportInputs") -> list[NextStep]:
    """Return what adds to the page, or looks further."""
    unseen = [run for run in inputs.records if run.widths and run.inspection is None]
    if unseen:
        return [make_step("inspect", name_path(unseen[0].summary.path))]
    if len(inputs.groups) > 1:
        return [make_step("compare", *inputs.words)]
    run = inputs.records[0]
    return [make_step("inspect", name_path(run.summary.path), "She was")] if run.widths else []
