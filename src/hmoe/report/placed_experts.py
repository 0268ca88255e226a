"""Where the experts of a run lived while several processes trained it, and how often they moved."""

from typing import Any

from hmoe.report.inputs import ReportInputs, RunRecord
from hmoe.report.pieces import PagePart, PageSection, make_table
from hmoe.runs.placement_log import read_placement_log
from hmoe.units import format_bytes


def describe_placed_experts(inputs: ReportInputs) -> PageSection | None:
    """Return the section of placements; None where all experts lived in every process."""
    rows = [row for record in inputs.records for row in list_placement_rows(record)]
    if not rows:
        return None
    table = make_table(
        "placements",
        "Where experts lived: from which step on, and how even that was.",
        rows,
        20,
        titles={"before": "busiest before", "after": "busiest after"},
    )
    return PageSection(
        "placements",
        "Where its experts lived" if len(inputs.records) == 1 else "Where their experts lived",
        "Each process held some of the experts, and tokens travelled to them.",
        [PagePart(tables=[table])],
        [
            "Busiest: work of the busiest process, hidden units times tokens, divided by the mean; mean over the "
            "layers that moved, by the load since the look before."
        ],
    )


def list_placement_rows(record: RunRecord) -> list[dict[str, Any]]:
    """Return a row for each begin of a training and each move."""
    log = read_placement_log(record.summary.path, record.summary.step)
    return [
        {
            "run": record.name,
            "step": row["step"],
            "event": "begin" if row.get("before") is None else "move",
            "processes": row.get("processes"),
            "layers": len(row.get("layers", ())),
            "before": row.get("before"),
            "after": row.get("after"),
            "sent": format_bytes(row["sent_bytes"]) if row.get("sent_bytes") else None,
        }
        for row in log
    ]
