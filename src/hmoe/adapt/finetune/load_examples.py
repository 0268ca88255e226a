"""Examples of a task, from the Hugging Face hub or from local files."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hmoe.adapt.finetune.example import TaskExample
from hmoe.adapt.finetune.json_lines import describe_broken_line
from hmoe.adapt.finetune.squad_json import is_squad_json, read_squad_json
from hmoe.adapt.finetune.tasks import FinetuneTask, Row
from hmoe.errors import DataError, make_missing_extra_error

_KINDS = {
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}


def load_task_examples(
    task: FinetuneTask, folder: Path | None
) -> tuple[list[TaskExample], list[TaskExample]]:
    """Return the training and the validation examples of a task.

    Args:
        task: which examples.
        folder: with a file `train` and one `validation`, each ending in .jsonl, .json, .csv, .parquet, .arrow
            or .txt, with the task's own columns, for SQuAD also its official nested JSON; None: the task's
            data set of the hub.

    Raises:
        DataError: for data that cannot be read, or lack a column; a row that is not as it must be is named by
            its number.
    """
    try:
        import datasets  # noqa: PLC0415 - optional extra
    except ImportError:
        raise make_missing_extra_error("fine-tuning recipes", "finetune") from None
    datasets.disable_progress_bars()
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # what goes wrong is raised below
    splits = []
    for split in ("train", task.validation):
        examples: list[TaskExample] = []
        name, rows = _rows(datasets, task, folder, split)
        for place, row in rows:
            try:
                examples += task.examples(row)
            except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
                why = f"{type(error).__name__}: {error}"
                raise DataError(f"{name}: {place} is not as {task.name} has them: {why}") from None
        if not examples:
            raise DataError(f"{name}: holds no example")
        splits.append(examples)
    return splits[0], splits[1]


def _rows(
    datasets: Any, task: FinetuneTask, folder: Path | None, split: str
) -> tuple[str, Iterable[tuple[str, Row]]]:
    """Return where a split is from, and its rows, each with its place: "row 1" comes after a header."""
    path = None if folder is None else _file(folder, split)
    name = f"{task.dataset} {task.subset or ''} {split}" if path is None else str(path)
    if path is not None and path.stat().st_size == 0:
        raise DataError(f"{name}: empty file")
    if path is not None and task.name == "squad" and is_squad_json(path):
        return name, read_squad_json(path)
    table = _table(datasets, task, path, split, name)
    missing = [column for column in task.columns if column not in table.column_names]
    if missing:
        raise DataError(
            f"{name}: has no column {', '.join(missing)}; {task.name} needs {', '.join(task.columns)}"
        )
    return name, ((f"row {position}", row) for position, row in enumerate(table, 1))


def _table(datasets: Any, task: FinetuneTask, path: Path | None, split: str, name: str) -> Any:
    try:
        if path is None:
            return datasets.load_dataset(task.dataset, task.subset, split=split)
        breaks = {"keep_linebreaks": True} if path.suffix == ".txt" else {}  # as the hub's WikiText has them
        return datasets.load_dataset(_KINDS[path.suffix], data_files={split: name}, split=split, **breaks)
    except Exception as error:  # whatever a hub, a network or a parser raises
        broken = None if path is None else describe_broken_line(path)
        if broken is not None:
            raise DataError(f"{name}: cannot be read ({broken})") from None
        # The library wraps a parser's exception into its own, which only says that something went wrong.
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        why = " ".join(f"{type(cause).__name__}: {cause}".split())[:300]
        hint = "; without a network give a folder as `data`" if path is None else ""
        raise DataError(f"{name}: cannot be read ({why}){hint}", argument="data" if hint else None) from None


def _file(folder: Path, split: str) -> Path:
    """Return the file of a split; `validation` also serves for a longer name (MNLI's validation_matched)."""
    names: Sequence[str] = dict.fromkeys([split, split.partition("_")[0]])  # type: ignore[assignment]
    for name in names:
        files = [folder / f"{name}{ending}" for ending in _KINDS if (folder / f"{name}{ending}").is_file()]
        if len(files) > 1:
            raise DataError(f"{folder}: holds {' and '.join(file.name for file in files)}; keep one of them")
        if files:
            return files[0]
    raise DataError(f"{folder}: no file {' or '.join(names)} with an ending of {', '.join(_KINDS)}")
