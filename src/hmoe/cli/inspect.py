"""`hmoe inspect`: what each expert reads, costs and is worth; or one text, coloured by what it activates."""

import difflib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from hmoe.cli.arguments import AnyModel, AsJson
from hmoe.cli.inspection_files import FOLDER, RECORD, STATE, describe_earlier, write_inspection
from hmoe.cli.inspection_lines import list_inspection_lines
from hmoe.cli.inspection_source import read_held_out_source, read_question_source, read_text_source
from hmoe.cli.next_steps import NextStep, make_step, name_path, print_report
from hmoe.cli.output import print_note
from hmoe.cli.processes import (
    NumProcesses,
    StartOptions,
    choose_note,
    join_workers,
    open_progress_bar,
    read_launch,
    start_processes,
)
from hmoe.errors import ConfigError, make_missing_extra_error
from hmoe.storage import check_unused_folder

if TYPE_CHECKING:
    from hmoe.analyze.inspection import InspectedText
    from hmoe.evaluate.tasks import TaskSelection
    from hmoe.parallel.workers import Workers
    from hmoe.runs.open_model import OpenedModel

_SAMPLE_TOKENS = 4096
_HF_WINDOW = 2048  # at most, of models that do not say on which lengths they were trained
_FORMS = ("svg", "png", "pdf", "none")

_Passage = Annotated[
    str | None, typer.Argument(metavar="TEXT", help="One text, shown token by token. Default: whole texts.")
]
_Token = Annotated[
    list[str] | None,
    typer.Option(
        help="With TEXT: number or text of the token whose experts are shown; else token types to describe, repeatable."
    ),
]
_Text = Annotated[
    list[Path] | None,
    typer.Option(
        help="Text, jsonl or parquet file or folder; repeatable. Default: the run's held-out documents."
    ),
]
_TextField = Annotated[
    str | None, typer.Option(help="Field of jsonl and parquet records, or a template of several.")
]
_Tasks = Annotated[
    str | None, typer.Option(help="Benchmarks instead of text, separated by commas, as in `hmoe eval`.")
]
_Benchmarks = Annotated[Path | None, typer.Option(help="Folder of `hmoe data benchmarks`.")]
_Limit = Annotated[int | None, typer.Option(min=1, help="Questions of each task. Default: all.")]
_Window = Annotated[
    int | None, typer.Option(min=2, help="Tokens read at once. Default: as many as in training.")
]
_MostTokens = Annotated[
    int | None,
    typer.Option("--tokens", min=1, help="Read about so many tokens of text, whole documents. Default: all."),
]
_Sample = Annotated[
    int | None,
    typer.Option(
        min=0, help="Tokens for what needs every expert on the same tokens; 0: leave that out. Default: 4096."
    ),
]
_Senses = Annotated[
    Path | None, typer.Option(help="Number of senses by word: CSV, TSV, or WordNet's index files.")
]
_Figures = Annotated[
    str | None,
    typer.Option(help="svg, png, pdf, several separated by commas, or none. Default: svg.", metavar="FORMS"),
]
_Out = Annotated[
    Path | None, typer.Option(help="Folder for tables and figures. Default: inspect/ in the run folder.")
]


def inspect_folder(
    context: typer.Context,
    run: AnyModel,
    passage: _Passage = None,
    token: _Token = None,
    text: _Text = None,
    text_field: _TextField = None,
    tasks: _Tasks = None,
    benchmarks: _Benchmarks = None,
    limit: _Limit = None,
    window: _Window = None,
    most_tokens: _MostTokens = None,
    sample: _Sample = None,
    senses: _Senses = None,
    figures: _Figures = None,
    out: _Out = None,
    processes: NumProcesses = None,
    as_json: AsJson = False,
) -> None:
    """Look inside: what experts read, cost, are worth.

    In tables, figures and coloured text.
    """
    of_texts = {
        "--text": text, "--text-field": text_field, "--tasks": tasks, "--benchmarks": benchmarks, "--limit": limit,
        "--window": window, "--tokens": most_tokens, "--senses": senses, "--out": out, "--sample": sample,
        "--figures": figures,
    }  # fmt: skip
    if passage is not None:
        _refuse_flags({**of_texts, "--processes": processes}, "with TEXT, which is read alone")
        _show_passage(run, passage, token, as_json)
        return
    _check_sources(of_texts)
    _check_plot_extra()
    forms = _read_forms(figures or "svg")
    names = _read_names(tasks)
    numbers, starts_others = read_launch(processes)
    if starts_others:
        start_processes(context, StartOptions(processes or 1))
    reading = _Reading(window, most_tokens, _SAMPLE_TOKENS if sample is None else sample, tuple(token or ()))
    source = _Source(text, text_field, names, benchmarks, limit)
    with join_workers(numbers) as workers:
        _inspect_texts(run, source, reading, senses, _Results(out, forms, as_json), workers)


class _Reading(NamedTuple):
    """How much is read, and what is described: options of the verb."""

    window: int | None
    most_tokens: int | None
    sample_tokens: int
    chosen: tuple[str, ...]


class _Source(NamedTuple):
    """What is read: options of the verb."""

    text: list[Path] | None
    text_field: str | None
    tasks: list[str]
    benchmarks: Path | None
    limit: int | None


class _Results(NamedTuple):
    """Where what is seen goes: options of the verb."""

    out: Path | None
    forms: list[str]
    as_json: bool


def _inspect_texts(
    run: Path, wanted: _Source, reading: _Reading, senses: Path | None, results: _Results, workers: "Workers"
) -> None:
    from hmoe.analyze.inspection import InspectionOptions, help_inspecting, inspect_text
    from hmoe.runs.open_model import open_model

    say = choose_note(workers)
    with workers.together():
        selection = _select(wanted, say)  # before a large model is read
        opened = open_model(run, say)
        folder = _choose_folder(opened, results.out)
        length = reading.window or _choose_window(opened)
        options = InspectionOptions(length, *reading[1:3], chosen=reading.chosen)
        source = _choose_source(opened, run, wanted, selection)
        senses_V = _read_senses(senses, opened)
    if workers.rank == 0:
        _note_before(opened, length, folder)
    state = None if folder is None else folder / STATE
    with open_progress_bar(workers) as bar:

        def report(task: str, done: int, total: int | None) -> None:
            bar.update(task, done, total, [task, f"{done:,} tokens"] if task == "reading" else task)

        # Tasks first: one that cannot be measured is told before the long reading.
        by_task = (
            {}
            if selection is None
            else _measure_tasks(opened, selection, length, wanted.limit, report, workers)
        )
        if workers.rank > 0:
            help_inspecting(opened, source, options, state, workers)
            return
        inspection = inspect_text(opened, source, options, senses_V, state, report, workers)
        inspection.record["tables"] |= by_task
    written = write_inspection(inspection, folder, results.forms) if folder is not None else []
    lines = list_inspection_lines(inspection.record, written, folder)
    print_report(inspection.record, lines, _list_steps(opened, run, results.out), results.as_json)


def _choose_window(opened: "OpenedModel") -> int:
    return opened.context_length if opened.run else min(opened.context_length, _HF_WINDOW)


def _note_before(opened: "OpenedModel", length: int, folder: Path | None) -> None:
    from hmoe.cli.inspect_text import note_long_window

    note_long_window(length, opened)
    earlier = None if folder is None else describe_earlier(folder)
    if earlier is not None:
        print_note(f"{folder}: will replace the inspection of {earlier}; --out DIR keeps both")


def _check_sources(flags: Mapping[str, Any]) -> None:
    """Raise ConfigError for options of another source of text than the one that is named."""

    def select(*names: str) -> dict[str, Any]:
        return {name: flags[name] for name in names}

    if flags["--tasks"] is None:
        _refuse_flags(select("--benchmarks", "--limit"), "without --tasks")
    else:
        _refuse_flags(select("--text", "--text-field"), "with --tasks")
        if flags["--tokens"] is not None:
            raise ConfigError("--tokens: with --tasks name the number of questions by --limit")
    if flags["--text-field"] and not flags["--text"]:
        raise ConfigError("--text-field has no effect without --text; remove it or name a text")


def _refuse_flags(flags: Mapping[str, Any], where: str) -> None:
    for flag, value in flags.items():
        if value is not None and value != []:
            raise ConfigError(f"{flag} has no effect {where}; remove one of them")


def _check_plot_extra() -> None:
    if not all(map(importlib.util.find_spec, ("matplotlib", "scipy"))):
        raise make_missing_extra_error("tables and figures", "plot")


def _read_names(tasks: str | None) -> list[str]:
    return [name.strip() for name in (tasks or "").split(",") if name.strip()]


def _read_forms(figures: str) -> list[str]:
    forms = list(dict.fromkeys(form.strip() for form in figures.split(",")))
    for form in forms:
        if form not in _FORMS:
            nearest = difflib.get_close_matches(form, _FORMS, 1, 0)[0]
            raise ConfigError(
                f"--figures {figures}: {form!r} must be one of {', '.join(_FORMS)}; nearest is {nearest}"
            )
    if "none" in forms and len(forms) > 1:
        raise ConfigError(f"--figures {figures}: none goes with no other form")
    return [form for form in forms if form != "none"]


def _show_passage(run: Path, passage: str, token: list[str] | None, as_json: bool) -> None:
    from hmoe.cli.inspect_text import print_text
    from hmoe.runs.open_model import open_model

    if token and len(token) > 1:
        raise ConfigError("--token: with TEXT it names one token; give it once")
    try:
        passage.encode()
    except UnicodeEncodeError:
        raise ConfigError("TEXT: is not valid UTF-8") from None
    print_text(open_model(run, print_note), passage, token[0] if token else None, as_json)


def _select(wanted: _Source, say: Callable[[str], None]) -> "TaskSelection | None":
    if not wanted.tasks:
        return None
    from hmoe.evaluate.tasks import select_tasks

    return select_tasks(wanted.tasks, wanted.benchmarks, say)


def _choose_source(
    opened: "OpenedModel", run: Path, wanted: _Source, selection: "TaskSelection | None"
) -> "InspectedText":
    if selection is not None:
        return read_question_source(opened, selection, wanted.limit)
    if wanted.text:
        return read_text_source(opened, wanted.text, wanted.text_field)
    return read_held_out_source(opened, run)


def _choose_folder(opened: "OpenedModel", out: Path | None) -> Path | None:
    """Return the folder for tables and figures: the one that is named, or one in the run folder; None: none."""
    if out is None:
        return opened.folder / FOLDER if opened.run is not None and opened.folder is not None else None
    if not (out / RECORD).is_file() and not (out / STATE).is_file():
        check_unused_folder(out)
    return out


def _read_senses(senses: Path | None, opened: "OpenedModel") -> Any:
    if senses is None:
        return None
    from hmoe.analyze.senses import map_senses, read_senses
    from hmoe.analyze.token_types import describe_token_types

    types = describe_token_types(opened.tokenizer, opened.model.config.vocab)
    return map_senses(read_senses(senses), types.texts)


def _measure_tasks(
    opened: "OpenedModel", selection: "TaskSelection", window: int, limit: int | None, report: Any,
    workers: "Workers",
) -> dict[str, Any]:  # fmt: skip
    from hmoe.analyze.questions import measure_questions
    from hmoe.evaluate.harness import EvaluationOptions

    options = EvaluationOptions(limit=limit, begin=opened.begin, workers=workers)
    return measure_questions(opened.model, opened.tokenizer, window, selection, options, report)


def _list_steps(opened: "OpenedModel", run: Path, out: Path | None) -> list[NextStep]:
    """Return what can follow: one text in colour, and the page about the run."""
    steps = [make_step("inspect", name_path(run), "She was not at home.")]
    if opened.run is not None and out is None and opened.folder is not None:
        page = name_path(run / "report.html")
        steps.append(make_step("report", name_path(run), "--out", page))
    return steps
