"""`hmoe inspect RUN`: whole texts, read by one process or by several."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hmoe.cli.inspection_files import FOLDER, RECORD, STATE, describe_earlier, write_inspection
from hmoe.cli.inspection_lines import list_inspection_lines
from hmoe.cli.inspection_source import read_held_out_source, read_question_source, read_text_source
from hmoe.cli.next_steps import NextStep, make_step, name_path, print_report
from hmoe.cli.output import print_note
from hmoe.cli.processes import choose_note, open_progress_bar
from hmoe.storage import check_unused_folder

if TYPE_CHECKING:
    from hmoe.analyze.inspection import InspectedText, Inspection
    from hmoe.evaluate.tasks import TaskSelection
    from hmoe.parallel.workers import Workers
    from hmoe.runs.open_model import OpenedModel

_HF_WINDOW = 2048  # at most, of models that do not say on which lengths they were trained


class ReadingOptions(NamedTuple):
    """How much is read, and what is described: options of the verb."""

    window: int | None
    most_tokens: int | None
    sample_tokens: int
    chosen: tuple[str, ...]


class SourceOptions(NamedTuple):
    """What is read: options of the verb."""

    text: list[Path] | None
    text_field: str | None
    tasks: list[str]
    benchmarks: Path | None
    limit: int | None


class ResultOptions(NamedTuple):
    """Where what is seen goes: options of the verb."""

    out: Path | None
    forms: list[str]
    as_json: bool


def inspect_whole_texts(
    run: Path,
    wanted: SourceOptions,
    reading: ReadingOptions,
    senses: Path | None,
    results: ResultOptions,
    workers: "Workers",
) -> None:
    """Read texts with a model, then write and print what is seen; of several processes the first does that."""
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
        by_task = _measure_tasks(opened, selection, length, wanted.limit, report, workers)
        if workers.rank > 0:
            help_inspecting(opened, source, options, state, workers)
            return
        inspection = inspect_text(opened, source, options, senses_V, state, report, workers)
        inspection.record["tables"] |= by_task
    _give_results(inspection, opened, run, folder, results)


def _give_results(
    inspection: "Inspection", opened: "OpenedModel", run: Path, folder: Path | None, results: ResultOptions
) -> None:
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


def _select(wanted: SourceOptions, say: Callable[[str], None]) -> "TaskSelection | None":
    if not wanted.tasks:
        return None
    from hmoe.evaluate.tasks import select_tasks

    return select_tasks(wanted.tasks, wanted.benchmarks, say)


def _choose_source(
    opened: "OpenedModel", run: Path, wanted: SourceOptions, selection: "TaskSelection | None"
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
    opened: "OpenedModel", selection: "TaskSelection | None", window: int, limit: int | None, report: Any,
    workers: "Workers",
) -> dict[str, Any]:  # fmt: skip
    if selection is None:
        return {}
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
