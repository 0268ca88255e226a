"""How the loss fell: against FLOPs, tokens and seconds, smoothed for the eye, with the logged rows as data."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from hmoe.figures.records import Curve, Curves
from hmoe.report.inputs import ReportInputs, RunRecord
from hmoe.report.pieces import PageFigure, PagePart, PageSection, make_table
from hmoe.units import format_count, format_duration, format_flops

MOST_POINTS = 120  # of a line in view
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
    kept = [thin(own, MOST_ROWS_OF_CSV // len(rows)) for own in rows]
    table = make_table("loss", "Loss by step, as it was logged.", [row for own in kept for row in own], 20)
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
    """Return the place of each recipe on the scale of colours, evenly spread; a single recipe has the middle."""
    last = max(len(inputs.groups) - 1, 1)
    return {
        group.name: place / last if len(inputs.groups) > 1 else 0.25 for place, group in enumerate(inputs.groups)
    }


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


def thin(rows: Sequence[Any], most: int) -> list[Any]:
    """Return at most so many of the rows, evenly spaced, the first and the last among them."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(place * (len(rows) - 1) / (most - 1))] for place in range(most)]


def smooth(points: _Points, most: int = MOST_POINTS) -> _Points:
    """Return the means of neighbouring points, at most so many: for the eye only."""
    if len(points) < 8:
        return points
    size = max(1, -(-len(points) // most))
    reach = max(1, len(points) // 50)
    centres = range(0, len(points), size)
    return [
        (
            points[centre][0],
            statistics.fmean(y for _, y in points[max(0, centre - reach) : centre + reach + 1]),
        )
        for centre in centres
    ]


def _draw_losses(
    inputs: ReportInputs, rows: list[list[dict[str, Any]]], ranks: dict[str, float | None], axis: str
) -> PageFigure | None:
    word, label, show = _AXES[axis]
    curves, ends, named = [], [], set()
    for record, own in zip(inputs.records, rows, strict=True):
        points = smooth([(row[axis], row["loss"]) for row in own if row[axis] is not None])
        if len(points) < 2:
            continue
        name = "" if record.group in named else record.group
        named.add(record.group)
        xs, ys = zip(*points, strict=True)
        curves.append(Curve(label=name, xs=xs, ys=ys, rank=ranks[record.group]))
        ends.append(f"{record.name} {ys[0]:.3f} to {ys[-1]:.3f} at {show(xs[-1])}")
    if not curves:
        return None
    text = f"Training loss in nats per token, smoothed, from first to last: {'; '.join(ends)}."
    chart = Curves(
        title=f"Loss against {word}", description=text, curves=curves, x_label=label, y_label="nats per token"
    )
    return PageFigure(chart)


def _draw_validations(
    inputs: ReportInputs, rows: list[list[dict[str, Any]]], ranks: dict[str, float | None]
) -> PageFigure | None:
    curves, ends, named = [], [], set()
    for record, own in zip(inputs.records, rows, strict=True):
        points = [
            (row["flops"], row["validation_bits_per_byte"])
            for row in own
            if row["validation_bits_per_byte"] is not None and row["flops"] is not None
        ]
        if len(points) < 2:
            continue
        xs, ys = zip(*points, strict=True)
        name = "" if record.group in named else record.group
        named.add(record.group)
        curves.append(Curve(label=name, xs=xs, ys=ys, rank=ranks[record.group]))
        ends.append(f"{record.name} {ys[0]:.3f} to {ys[-1]:.3f}")
    if not curves:
        return None
    text = f"Bits per byte of held-out text, from the first validation to the last: {'; '.join(ends)}."
    chart = Curves(
        title="Held-out text against FLOPs",
        description=text,
        curves=curves,
        x_label="training FLOPs",
        y_label="bits per byte",
    )
    return PageFigure(chart)
