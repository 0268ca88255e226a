"""Tables of an inspection as the page shows them: behind captions, rows over all layers, numbers with intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

from hmoe.figures.records import Chart
from hmoe.report.pieces import PageFigure, PageTable, make_table

_TITLES = {  # of columns that are named alike in several tables
    "experts": {"compute_share": "share of its layer's work"},
    "widths": {"compute_share": "share of the work of its layers"},
    "worth": {"compute_share": "share of the work of all layers", "p": "p (Holm, over all experts)"},
}
Tables = Mapping[str, list[dict[str, Any]]]


def fold_table(name: str, table: str, caption: str, tables: Tables, num_shown: int = 40) -> list[PageTable]:
    """Return a table of the inspection behind its caption; [] where it has no rows."""
    rows = tables.get(table, [])
    title = table.replace("_", "-")
    return (
        [make_table(f"{title}-{name}", caption, rows, num_shown, is_folded=True, titles=_TITLES.get(table))]
        if rows
        else []
    )


def list_figures(charts: Sequence[Chart | None]) -> list[PageFigure]:
    """Return figures of the charts that there are."""
    return [PageFigure(chart) for chart in charts if chart is not None]


def get_overall(rows: Sequence[Mapping[str, Any]], **wanted: Any) -> list[Mapping[str, Any]]:
    """Return the rows over all layers that have these values."""
    return [
        row
        for row in rows
        if row["layer"] is None and all(row.get(key) == value for key, value in wanted.items())
    ]


def show_interval(row: Mapping[str, Any], low: str, high: str, form: str) -> str:
    """Return the interval of a number in brackets; "" where there is none."""
    if row.get(low) is None or row.get(high) is None:
        return ""
    return f" ({row[low]:{form}} to {row[high]:{form}})".replace("-", "\u2212")
