"""Draws charts: plain records in, the bytes of an SVG, PNG or PDF out; the only file that needs matplotlib."""

import io
import re
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

from hmoe.errors import ConfigError, make_missing_extra_error
from hmoe.figures import draw_lines, draw_maps
from hmoe.figures.draw_lines import is_turned, list_keys, shorten_label
from hmoe.figures.draw_maps import count_fitting
from hmoe.figures.layout import LEGEND_LINE, Room, arrange_legend
from hmoe.figures.records import Bars, Chart, HeatMap, Panels, Points, River
from hmoe.figures.svg import INK, adapt_svg, show_controls

FORMS = ("svg", "png", "pdf")
WIDTH = 360  # pixels: of a phone; several stand beside each other elsewhere
_TITLE_SIZE, _TEXT_SIZE = 11.5, 10
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": _TEXT_SIZE,
    "axes.labelsize": _TEXT_SIZE,
    "xtick.labelsize": _TEXT_SIZE,
    "ytick.labelsize": _TEXT_SIZE,
    "legend.fontsize": _TEXT_SIZE,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.facecolor": "none",
    "legend.frameon": False,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "hmoe",
    "pdf.fonttype": 42,
}
_METADATA: dict[str, dict[str, None]] = {
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def render_chart(
    chart: Chart,
    form: str = "svg",
    size: tuple[int, int] | None = None,
    prefix: str = "chart",
    embedded: bool = True,
    shows_title: bool = True,
) -> bytes:
    """Return a chart as a picture; the same chart gives the same bytes.

    Args:
        chart: what it shows.
        form: one of FORMS. An SVG takes text colours from around it, the others are dark on white.
        size: width and height in pixels of the SVG; by default WIDTH, and as high as the chart needs.
        prefix: begins the ids of an SVG; no two in one page may have the same.
        embedded: whether an SVG stands in a page; in a file of its own it follows the reader's theme.
        shows_title: whether the title stands above; a page may have it in its own text. Screen readers always get it.

    Raises:
        ConfigError: for another form or a prefix that is no id, or if matplotlib is not installed.
    """
    if form not in FORMS:
        raise ConfigError(f"form = {form}: must be one of {', '.join(FORMS)}", argument="form")
    if not re.fullmatch(r"[A-Za-z][\w-]*", prefix, re.ASCII):
        raise ConfigError(
            f"prefix = {prefix!r}: must be a letter, then letters, digits, - and _", argument="prefix"
        )
    try:
        import matplotlib  # noqa: PLC0415 - optional extra
        from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: PLC0415
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError:
        raise make_missing_extra_error("figures", "plot") from None
    width, height = size or (WIDTH, choose_height(chart, shows_title))
    content = io.BytesIO()
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # Letters that the reader's font has may lack in ours.
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        lines = _wrap_title(chart.title, width) if shows_title else ""
        _draw(figure, chart, Room(width, height, _measure_title(lines)))
        if lines:
            figure.text(6 / width, 1 - 6 / height, lines, va="top", fontsize=_TITLE_SIZE, fontweight="bold")
        if form == "svg":
            # Not savefig, which first draws the whole picture for its size, and throws it away.
            figure.patch.set_visible(False)
            FigureCanvasSVG(figure).print_svg(content, metadata=_METADATA[form])
        else:
            figure.savefig(content, format=form, dpi=144, facecolor="white", metadata=_METADATA[form])
    if form != "svg":
        return content.getvalue()
    drawn = content.getvalue().decode()
    return adapt_svg(drawn, prefix, chart.title, chart.description, embedded).encode()


def choose_height(chart: Chart, shows_title: bool = True) -> int:
    """Return how many pixels high a chart of the usual width is."""
    title = int(_measure_title(_wrap_title(chart.title, WIDTH))) if shows_title else 0
    if isinstance(chart, Panels):
        grid_rows = -(-len(chart.maps) // chart.columns)
        return (
            title
            + int(draw_maps.SCALE)
            + 20
            + grid_rows * (int(draw_maps.PANEL_TITLE) + 330 // chart.columns)
        )
    if isinstance(chart, HeatMap):
        rows = len(chart.row_labels)
        cell = 22 if rows <= 12 else max(5, 264 // rows)
        is_upright = len(chart.column_labels) > count_fitting(chart.column_labels)
        upright = _measure(chart.column_labels) if is_upright else 0
        tree = int(draw_maps.TREE) if chart.linkage else 0
        return title + 110 + cell * max(rows, 3) + tree + upright
    legend = int(LEGEND_LINE) * len(arrange_legend(list_keys(chart), WIDTH))
    if isinstance(chart, Points):
        return title + 58 + 20 * max(len(chart.labels), 2) + legend
    turned = _measure(chart.labels) if isinstance(chart, Bars) and is_turned(chart.labels) else 0
    return title + 205 + turned + legend


def _measure_title(lines: str) -> float:
    return 16.0 * (lines.count("\n") + 1) + 6 if lines else 0.0


def _measure(labels: Sequence[str]) -> int:
    """Return how many pixels names that do not lie need more than those that do."""
    return max(6 * max(len(shorten_label(label)) for label in labels) - 18, 0)


def _wrap_title(title: str, width: int) -> str:
    return textwrap.fill(show_controls(title), max(int(width / 7.9), 10))


def _draw(figure: Any, chart: Chart, room: Room) -> None:
    if isinstance(chart, Panels):
        draw_maps.draw_panels(figure, chart, room)
    elif isinstance(chart, HeatMap):
        draw_maps.draw_heat_map(figure, chart, room)
    elif isinstance(chart, Points):
        draw_lines.draw_points(figure, chart, room)
    elif isinstance(chart, Bars):
        draw_lines.draw_bars(figure, chart, room)
    elif isinstance(chart, River):
        draw_lines.draw_river(figure, chart, room)
    else:
        draw_lines.draw_curves(figure, chart, room)
