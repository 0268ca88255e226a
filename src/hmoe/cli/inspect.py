"""`hmoe inspect`: what each expert reads, costs and is worth; or one text, coloured by what it activates."""

import difflib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hmoe.cli.arguments import AnyModel, AsJson
from hmoe.cli.inspect_texts import ReadingOptions, ResultOptions, SourceOptions, inspect_whole_texts
from hmoe.cli.output import print_note
from hmoe.cli.processes import (
    NumProcesses,
    StartOptions,
    join_workers,
    read_launch,
    start_processes,
)
from hmoe.errors import ConfigError, make_missing_extra_error

if TYPE_CHECKING:
    pass

_SAMPLE_TOKENS = 4096

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
    reading = ReadingOptions(
        window, most_tokens, _SAMPLE_TOKENS if sample is None else sample, tuple(token or ())
    )
    source = SourceOptions(text, text_field, names, benchmarks, limit)
    with join_workers(numbers) as workers:
        inspect_whole_texts(run, source, reading, senses, ResultOptions(out, forms, as_json), workers)


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
