"""Draws charts with axes onto a figure of matplotlib: curves, bars, rivers and points."""

import math
from collections.abc import Sequence
from typing import Any

from hmoe.figures.colours import WIDTHS, pick_colour
from hmoe.figures.layout import DASHES, Key, Room, draw_legend, measure_text, place_axes
from hmoe.figures.records import Bars, Curve, Curves, Known, Points, River, is_known
from hmoe.figures.svg import INK, show_controls

_NAN = float("nan")
_NULL_NAME = "random routing"
_INTERVAL_NAME = "95% interval"
_MOST_MARKED = 24  # points of a curve


def add_axes(figure: Any) -> Any:
    """Return axes of a picture whose place is not known yet."""
    return figure.add_axes((0.1, 0.1, 0.8, 0.8))


def list_keys(chart: Any) -> list[Key]:
    """Return the entries of a chart's legend; [] for one that needs none."""
    keys: list[Key] = []
    if isinstance(chart, Curves):
        keys = [
            Key(show_controls(curve.label), _pick_curve_colour(curve), _choose_mark(curve))
            for curve in chart.curves
            if curve.label
        ]
    elif isinstance(chart, River):
        keys = [
            Key(show_controls(band.label), pick_colour(WIDTHS, band.rank), "area") for band in chart.bands
        ]
    elif isinstance(chart, Bars) and _list_intervals(chart):
        keys = [Key(_INTERVAL_NAME, INK)]
    has_band = isinstance(chart, Points) and any(map(is_known, chart.null_lows))
    has_line = _has_null_line(chart)
    if has_band or has_line:
        name = chart.null_name if isinstance(chart, Points) else _NULL_NAME
        keys.append(Key(name, INK, "band" if has_band else "dashes"))
    is_needed = len(keys) > 1 or has_band or has_line or any(key.name == _INTERVAL_NAME for key in keys)
    return keys if is_needed else []


def _has_null_line(chart: Any) -> bool:
    """Return whether lines in a chart stand for what random routing gives."""
    has_marks = isinstance(chart, Bars | Points) and any(map(is_known, chart.nulls))
    return has_marks or (isinstance(chart, Curves | Points) and chart.null is not None)


def _choose_mark(curve: Curve) -> str:
    return "dashes" if curve.is_null else "line" if curve.is_line else "point"


def _pick_curve_colour(curve: Curve) -> str:
    return INK if curve.rank is None else pick_colour(WIDTHS, curve.rank)


def draw_curves(figure: Any, chart: Curves, room: Room) -> None:
    """Draw lines over a common axis."""
    axes = add_axes(figure)
    for curve in chart.curves:
        _draw_curve(axes, curve)
    if chart.null is not None:
        axes.axhline(chart.null, color=INK, linestyle=DASHES, linewidth=1)
    if chart.log_x:
        _set_log_axis(axes, [x for curve in chart.curves for x in curve.xs])
    elif chart.whole_x:
        axes.xaxis.get_major_locator().set_params(integer=True)
    if chart.from_zero:
        axes.set_ylim(bottom=0)
    _finish(figure, axes, chart, room)


def _draw_curve(axes: Any, curve: Curve) -> None:
    colour = _pick_curve_colour(curve)
    xs, ys = list(curve.xs), _to_numbers(curve.ys)
    style: Any = DASHES if curve.is_null else "-" if curve.is_line else ""
    # A number between two that are missing has no line that would show it.
    marked = [i for i in range(len(xs)) if len(xs) <= _MOST_MARKED or not curve.is_line or _is_alone(ys, i)]
    marker = "o" if marked and not curve.is_null else ""
    (line,) = axes.plot(xs, ys, color=colour, linestyle=style, linewidth=1.6)
    line.set(marker=marker, markersize=3.5, markevery=marked or None)
    if curve.lows:
        bounds = _to_numbers(curve.lows), _to_numbers(curve.highs)
        axes.fill_between(xs, *bounds, color=colour, alpha=0.22, linewidth=0)


def _is_alone(ys: Sequence[float], place: int) -> bool:
    return all(math.isnan(y) for y in (*ys[max(place - 1, 0) : place], *ys[place + 1 : place + 2]))


def _set_log_axis(axes: Any, xs: Sequence[float]) -> None:
    axes.set_xscale("log")
    positive = [x for x in xs if x > 0] or [1.0]
    is_long = max(positive) / min(positive) >= 1e3
    axes.xaxis.get_major_locator().set_params(subs=(1,) if is_long else (1, 2, 5))
    axes.xaxis.set_major_formatter(lambda value, _: format_tick(value))
    axes.xaxis.set_minor_formatter("")


def draw_bars(figure: Any, chart: Bars, room: Room) -> None:
    """Draw bars by category."""
    axes = add_axes(figure)
    places = list(range(len(chart.labels)))
    ranks = chart.ranks or [0.0] * len(places)
    colours = [pick_colour(WIDTHS, rank) for rank in ranks]
    for place, value, colour in zip(places, chart.values, colours, strict=True):
        if is_known(value):
            axes.bar(place, value, color=colour, width=0.72)
    _draw_intervals(axes, chart)
    if any(map(is_known, chart.nulls)):
        nulls = _to_numbers(chart.nulls)
        ends = [x - 0.45 for x in places], [x + 0.45 for x in places]
        axes.hlines(nulls, *ends, color=INK, linestyle=DASHES, linewidth=1.2)
    margin = max(4 - len(places), 0) / 2  # beside few bars, which would be blocks without it
    axes.set_xlim(-0.6 - margin, len(places) - 0.4 + margin)
    _set_names(axes.xaxis, chart.labels, places)
    _finish(figure, axes, chart, room)


def _list_intervals(chart: Bars) -> list[tuple[float, float, float, float]]:
    """Return (place, value, how far down, how far up) of the bars that have an interval."""
    return (
        [
            (x, y, max(y - low, 0), max(high - y, 0))
            for x, (y, low, high) in enumerate(zip(chart.values, chart.lows, chart.highs, strict=True))
            if is_known(y) and is_known(low) and is_known(high)
        ]
        if chart.lows
        else []
    )


def _draw_intervals(axes: Any, chart: Bars) -> None:
    whole = _list_intervals(chart)
    if whole:
        xs, ys, below, above = zip(*whole, strict=True)
        style = {"fmt": "none", "ecolor": INK, "elinewidth": 1.2, "capsize": 2.5}
        axes.errorbar(xs, ys, [below, above], **style)


def draw_river(figure: Any, chart: River, room: Room) -> None:
    """Draw areas stacked over a common axis."""
    axes = add_axes(figure)
    colours = [pick_colour(WIDTHS, band.rank) for band in chart.bands]
    if chart.bands:
        heights = [_to_numbers(band.ys) for band in chart.bands]
        axes.stackplot(chart.xs, heights, colors=colours, linewidth=0)
    if len(set(chart.xs)) > 1:
        axes.set_xlim(min(chart.xs), max(chart.xs))
    axes.set_ylim(bottom=0)
    _finish(figure, axes, chart, room)


def draw_points(figure: Any, chart: Points, room: Room) -> None:
    """Draw points by category, one a line."""
    axes = add_axes(figure)
    places = list(range(len(chart.labels)))
    if any(map(is_known, chart.null_lows)):
        lows, highs = _to_numbers(chart.null_lows), _to_numbers(chart.null_highs)
        sizes = [high - low for low, high in zip(lows, highs, strict=True)]
        axes.barh(places, sizes, left=lows, height=0.7, color=INK, alpha=0.18, linewidth=0)
    if any(map(is_known, chart.nulls)):
        marks = [i - 0.42 for i in places], [i + 0.42 for i in places]
        axes.vlines(_to_numbers(chart.nulls), *marks, color=INK, linestyle=DASHES, linewidth=1.2)
    if chart.null is not None:
        axes.axvline(chart.null, color=INK, linestyle=DASHES, linewidth=1)
    ranks = chart.ranks or [0.0] * len(places)
    for i, (value, rank) in enumerate(zip(chart.values, ranks, strict=True)):
        if not is_known(value):
            continue
        colour = pick_colour(WIDTHS, rank)
        if chart.lows and is_known(chart.lows[i]) and is_known(chart.highs[i]):
            ends = [chart.lows[i], chart.highs[i]]
            axes.plot(ends, [i, i], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot([value], [i], color=colour, marker="o", markersize=5.5)
    _set_limits(axes, chart)
    axes.set_ylim(max(len(places), 1) - 0.5, -0.5)
    axes.set_yticks(places, [shorten_label(label) for label in chart.labels])
    axes.xaxis.get_major_locator().set_params(nbins=5)
    _finish(figure, axes, chart, room)


def _set_limits(axes: Any, chart: Points) -> None:
    """Leave room beside all that is drawn, bands of chance too, and draw a line at 0 where it is inside."""
    columns = (
        chart.values,
        chart.lows,
        chart.highs,
        chart.null_lows,
        chart.null_highs,
        chart.nulls,
        [chart.null],
    )
    known = [value for column in columns for value in column if is_known(value)]
    if not known:
        return
    low, high = min(known), max(known)
    margin = 0.06 * (high - low) or 0.5
    axes.set_xlim(low - margin, high + margin)
    if low < 0 < high:
        axes.axvline(0, color=INK, linewidth=0.8, alpha=0.6)


def _finish(figure: Any, axes: Any, chart: Curves | Bars | River | Points, room: Room) -> None:
    """Write the numbers and names of axes, and the legend, and put everything in its place."""
    y_label = "" if isinstance(chart, Points) else chart.y_label
    axes.grid(axis="y" if y_label else "x", color=INK, alpha=0.13, linewidth=0.7)
    axes.set_axisbelow(True)
    for axis, scale in ((axes.xaxis, axes.get_xscale()), (axes.yaxis, axes.get_yscale())):
        if scale == "linear" and hasattr(axis.get_major_formatter(), "set_useOffset"):
            set_tick_format(axis)
    upright = 0.0
    if isinstance(chart, Bars) and is_turned(chart.labels):
        upright = 0.87 * max(measure_text(shorten_label(label)) for label in chart.labels) + 8
    place_axes(axes, draw_legend(figure, list_keys(chart), room), chart.x_label, y_label, upright)


def set_tick_format(axis: Any) -> None:
    """Write the numbers of an axis with format_tick."""

    def show(value: float, _: int | None) -> str:
        low, high = axis.get_view_interval()
        return format_tick(0.0 if abs(value) < 1e-9 * abs(high - low) else value)

    axis.set_major_formatter(show)


def format_tick(value: float) -> str:
    """Return a number for an axis, short but exact: 0.25, 12, 1.5k, 20M, 3T."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            # Beyond the last unit all digits, not an exponent.
            digits = f"{value / size:.10g}" if abs(value) < 1e18 else f"{value / size:,.0f}"
            return f"{digits}{unit}".replace("-", "\u2212")
    # Ten digits: ticks are short numbers, of which nothing may be lost, with noise of binary fractions behind.
    return f"{value + 0.0:.10g}".replace("-", "\u2212")


def _set_names(axis: Any, labels: Sequence[str], places: Sequence[int]) -> None:
    """Write the names of categories, so many as have room."""
    step = max(-(-len(labels) // 12), 1)
    axis.set_ticks(places[::step], [shorten_label(label) for label in labels[::step]])
    if is_turned(labels):
        axis.set_tick_params(rotation=60)


def is_turned(labels: Sequence[str]) -> bool:
    """Return whether names of categories have no room beside each other."""
    return max((len(shorten_label(label)) for label in labels), default=0) * min(len(labels), 12) > 44


def shorten_label(label: str) -> str:
    """Return a name for an axis on one line, with its end left out if it is long."""
    shown = show_controls(label)
    return shown if len(shown) <= 26 else shown[:25] + "…"


def _to_numbers(values: Known) -> list[float]:
    return [value if is_known(value) else _NAN for value in values]
