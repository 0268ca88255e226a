"""How the loss fell: against FLOPs, tokens and seconds, smoothed for the eye, with the logged rows as data."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from hmoe.figures.records import Curve, Curves
from hmoe.report.inputs import ReportInputs, RunRecord
from hmoe.report.pieces import PageFigure, PagePart, PageSection, make_table
from hmoe.runs.training_history import smooth_values
from hmoe.units import format_count, format_duration, format_flops

MOST_POINTS = 80  # of a line in view
MOST_ROWS_OF_CSV = 6000  # of all runs together
_AXES: dict[str, tuple[str, str, Callable[[float], str]]] = {
    "flops": ("FLOPs", "training FLOPs", format_flops),
    "tokens": ("tokens", "training tokens", format_count),
    "seconds": ("time", "training time in seconds", format_duration),
}
_Points = list[tuple[float, float]]


def describe_learning(inputs: ReportInputs) -> PageSection | None:
    """Return the section of loss curves; None where no run logged a loss."""
    rows = [list_loss_rows(record) for record in inputs.records]
    if not any(rows):
        return None
    ranks = rank_groups(inputs)
    figures = [_draw_losses(inputs, rows, ranks, axis) for axis in _AXES]
    validated = _draw_validations(inputs, rows, ranks)
    kept = [thin_rows(own, MOST_ROWS_OF_CSV // len(rows)) for own in rows]
    table = make_table(
        "loss", "Loss by step, as it was logged.", [row for own in kept for row in own], 20, is_folded=True
    )
    notes = ["Lines are means of neighbouring steps; the CSV has the rows as they were logged."]
    if any(len(own) < len(whole) for own, whole in zip(kept, rows, strict=True)):
        notes.append(
            f"The CSV has {len(table.rows):,} of {sum(map(len, rows)):,} rows, evenly spaced; metrics.jsonl has all."
        )
    return PageSection(
        "learning",
        "How they learned" if len(inputs.records) > 1 else "How it learned",
        "The same training seen three ways: what it cost in arithmetic, in text, and in time on its machine.",
        [PagePart(figures=[figure for figure in [*figures, validated] if figure], tables=[table])],
        notes,
    )


def rank_groups(inputs: ReportInputs) -> dict[str, float | None]:
    """Return the place of each recipe on the scale of colours, evenly spread; dense ones have the colour of text."""
    sparse = [group.name for group in inputs.groups if group.runs[0].config.model.moe]
    places = {name: place / max(len(sparse) - 1, 1) for place, name in enumerate(sparse)}
    return {group.name: places.get(group.name) for group in inputs.groups}


def list_loss_rows(record: RunRecord) -> list[dict[str, Any]]:
    """Return step, tokens, FLOPs, seconds, loss and validation of each row of a run."""
    return [
        {
            "run": record.name,
            "step": row["step"],
            "tokens": row.get("tokens"),
            "flops": row.get("flops"),
            "seconds": record.seconds.get(row["step"]),
            "loss": row["loss"],
            "validation_bits_per_byte": row.get("validation_bits_per_byte"),
        }
        for row in record.rows
        if isinstance(row.get("loss"), int | float)
    ]


def thin_rows(rows: Sequence[Any], most: int) -> list[Any]:
    """Return at most so many of the rows, evenly spaced, the first and the last among them."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(place * (len(rows) - 1) / (most - 1))] for place in range(most)]


def smooth_points(points: _Points, most: int = MOST_POINTS) -> _Points:
    """Return the means of neighbouring points, at most so many: for the eye only."""
    if len(points) < 8:
        return points
    size = max(1, -(-len(points) // most))
    reach = max(1, len(points) // 50)
    means = smooth_values([y for _, y in points], 2 * reach + 1)
    return [(x, mean) for (x, _), mean in list(zip(points, means, strict=True))[::size] if mean is not None]


def _draw_curves(
    inputs: ReportInputs,
    points: Sequence[_Points],
    ranks: dict[str, float | None],
    show: Callable[[float], str],
    chart: dict[str, Any],
) -> PageFigure | None:
    """Draw one line a run, named once a recipe; None where no run has two points."""
    curves: list[Curve] = []
    ends: dict[str, _Points] = {}
    for record, own in zip(inputs.records, points, strict=True):
        if len(own) < 2:
            continue
        xs, ys = zip(*own, strict=True)
        label = "" if record.group in ends else record.group
        curves.append(Curve(label=label, xs=xs, ys=ys, rank=ranks[record.group]))
        ends.setdefault(record.group, []).append((xs[-1], ys[-1]))
    if not curves:
        return None
    last = [
        f"{name} {statistics.fmean(y for _, y in own):.3f} at {show(statistics.fmean(x for x, _ in own))}"
        for name, own in ends.items()
    ]
    unit = find_unit(max(max(curve.xs) for curve in curves))
    curves = [replace(curve, xs=[x / unit for x in curve.xs]) for curve in curves]
    label = chart["x_label"] + (f" / {unit:.0e}".replace("e+", "e") if unit > 1 else "")
    description = f"{chart['description']}: {'; '.join(last)}."
    return PageFigure(Curves(**{**chart, "curves": curves, "description": description, "x_label": label}))


def find_unit(value: float) -> float:
    """Return the power of a thousand in which an axis up to a value has short numbers; 1 below a billion."""
    return 1.0 if value < 1e9 else 1000.0 ** math.floor(math.log(value, 1000))


def _draw_losses(
    inputs: ReportInputs, rows: list[list[dict[str, Any]]], ranks: dict[str, float | None], axis: str
) -> PageFigure | None:
    word, label, show = _AXES[axis]
    points = [
        smooth_points([(row[axis], row["loss"]) for row in own if row[axis] is not None]) for own in rows
    ]
    chart = {
        "title": f"Loss against {word}",
        "description": "Training loss at the end of the line, a mean of neighbouring steps, in nats per token",
        "x_label": label,
        "y_label": "nats per token",
    }
    return _draw_curves(inputs, points, ranks, show, chart)


def _draw_validations(
    inputs: ReportInputs, rows: list[list[dict[str, Any]]], ranks: dict[str, float | None]
) -> PageFigure | None:
    name = "validation_bits_per_byte"
    points = [
        [(row["flops"], row[name]) for row in own if None not in (row["flops"], row[name])] for own in rows
    ]
    chart = {
        "title": "Held-out text against FLOPs",
        "description": "Bits per byte at the last validation, mean over seeds",
        "x_label": "training FLOPs",
        "y_label": "bits per byte",
    }
    return _draw_curves(inputs, points, ranks, format_flops, chart)
