"""What `hmoe inspect` writes: one JSON record, a CSV file per table, positions with context, figures."""

import contextlib
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmoe.storage import read_json, write_atomic

if TYPE_CHECKING:
    from hmoe.analyze.inspection import Inspection

FOLDER = "inspect"  # in a run folder
RECORD, POSITIONS, STATE = "inspection.json", "positions.json", ".reading.npz"


def write_inspection(inspection: "Inspection", folder: Path, forms: Sequence[str]) -> list[str]:
    """Write tables and figures, and return the figures' names; the record comes last, as it tells that all is there."""
    folder.mkdir(parents=True, exist_ok=True)
    _remove_earlier(folder)
    tables = inspection.record["tables"]
    for name, rows in tables.items():
        write_atomic(folder / f"{name}.csv", render_rows(rows).encode())
    names: list[str] = []
    if forms:
        from hmoe.figures.inspection import write_figures

        names = write_figures(tables, folder, forms)
    write_atomic(folder / POSITIONS, _dump({"positions": inspection.positions}))
    write_atomic(folder / RECORD, _dump(inspection.record))
    (folder / STATE).unlink(missing_ok=True)  # nothing is left to go on with
    return names


def describe_earlier(folder: Path) -> str | None:
    """Return which text an earlier inspection in a folder is of; None without one."""
    try:
        text = read_json(folder / RECORD)["text"]
        return f"{text['source']} ({text['tokens']:,} tokens)"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remove_earlier(folder: Path) -> None:
    """Remove what an earlier inspection wrote, its record first: tables of two texts must not stand side by side."""
    try:
        tables = read_json(folder / RECORD)["tables"]
        # Names of this folder alone: the record may be of somebody else's making.
        names = [f"{name}.csv" for name in tables if Path(name).name == name and "\0" not in name]
    except (OSError, ValueError, KeyError, TypeError):
        return
    from hmoe.figures.charts import FORMS
    from hmoe.figures.inspection import list_charts

    # Of a damaged record charts stay: they are replaced where they are drawn again.
    with contextlib.suppress(ValueError, KeyError, TypeError, IndexError, AttributeError):
        names += [f"{chart}.{form}" for chart in list_charts(tables) for form in FORMS]
    # Charts that earlier versions drew layer by layer.
    names += [path.name for form in FORMS for path in folder.glob(f"redundancy-layer*.{form}")]
    for name in (RECORD, POSITIONS, *names):
        (folder / name).unlink(missing_ok=True)


def render_rows(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as CSV with exact values; where there is none, nothing stands."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow(["" if row.get(name) is None else row[name] for name in names])
    return file.getvalue()


def _dump(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n").encode()
