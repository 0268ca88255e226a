"""placements.jsonl of a run folder: where experts lived, from which step on, and how even that was. No torch.

A row each time: `step`, after which it holds; `processes`; `layers`, those whose experts moved, all at a begin;
`before` and `after`, the work of the busiest process divided by the mean, null where no load was known;
`sent_bytes`; and `placements` of all layers with experts.
"""

import json
from pathlib import Path
from typing import Any

from hmoe.errors import ConfigError
from hmoe.specs.placement import Placement
from hmoe.storage import write_atomic

PLACEMENTS = "placements.jsonl"


def read_placement_log(run: Path, last_step: int | None = None) -> list[dict[str, Any]]:
    """Return the rows up to a step, by default all; up to the first that is damaged: experts can live anywhere."""
    path, rows = run / PLACEMENTS, []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
            if not _is_row(row):
                break
        except (ValueError, RecursionError):
            break
        if last_step is None or row["step"] <= last_step:
            rows.append(row)
    return rows


def _is_row(row: Any) -> bool:
    """Return whether a row has what readers ask for."""
    if (
        not isinstance(row, dict)
        or type(row.get("step")) is not int
        or not isinstance(row.get("placements"), list)
    ):
        return False
    try:
        for plain in row["placements"]:
            Placement.from_plain(plain)
    except (ConfigError, ValueError, KeyError, TypeError):
        return False
    numbers = (row.get("before"), row.get("after"))
    is_number = all(each is None or type(each) in (int, float) for each in numbers)
    return is_number and (row.get("before") is None or row.get("after") is not None)


def write_placement_row(run: Path, row: dict[str, Any], placements: list[Placement]) -> None:
    """Add a row; those of later steps, which a resumed run has gone back before, go."""
    rows = [
        *read_placement_log(run, row["step"]),
        {**row, "placements": [each.to_plain() for each in placements]},
    ]
    lines = (json.dumps(each, separators=(",", ":"), allow_nan=False) for each in rows)
    write_atomic(run / PLACEMENTS, "".join(f"{line}\n" for line in lines).encode())


def describe_placement_log(run: Path, last_step: int) -> str | None:
    """Return a line on where the experts of a run lived up to a step; None where all were in every process."""
    rows = read_placement_log(run, last_step)
    if not rows:
        return None
    moves = [row for row in rows if row.get("before") is not None]
    processes = sorted({row["processes"] for row in rows if type(row.get("processes")) is int})
    line = (
        f"experts were placed on {' and '.join(map(str, processes))} processes, and moved {len(moves)} times"
    )
    if moves:
        line += (
            f", last at step {moves[-1]['step']:,}: the busiest process had {moves[-1]['before']:.2f} times the mean "
            f"work, then {moves[-1]['after']:.2f}"
        )
    return line
