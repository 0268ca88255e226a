"""Draws charts with axes onto a figure of matplotlib: curves, bars, rivers and points."""

from collections.abc import Sequence
from typing import Any

from hmoe.figures.colours import WIDTHS, pick_colour
from hmoe.figures.records import Bars, Curve, Curves, Known, Points, River
from hmoe.figures.svg import INK, show_controls

_NAN = float("nan")
_NULL_NAME = "random routing"


def draw_curves(figure: Any, chart: Curves) -> None:
    """Draw lines over a common axis."""
    axes = figure.subplots()
    for curve in chart.curves:
        _draw_curve(axes, curve)
    if chart.null is not None:
        axes.axhline(chart.null, color=INK, linestyle=(0, (3, 2)), linewidth=1, label=_NULL_NAME)
    if chart.log_x:
        axes.set_xscale("log")
    if chart.whole_x:
        axes.xaxis.get_major_locator().set_params(integer=True)
    if chart.from_zero:
        axes.set_ylim(bottom=0)
    _finish(figure, axes, chart.x_label, chart.y_label)


def _draw_curve(axes: Any, curve: Curve) -> None:
    colour = INK if curve.rank is None else pick_colour(WIDTHS, curve.rank)
    xs, ys = list(curve.xs), _to_numbers(curve.ys)
    style = (0, (3, 2)) if curve.is_null else "-"
    marker = "o" if len(xs) <= 24 and not curve.is_null else ""
    label = show_controls(curve.label) or None
    axes.plot(
        xs, ys, color=colour, linestyle=style, linewidth=1.6, marker=marker, markersize=3.5, label=label
    )
    if curve.lows:
        bounds = _to_numbers(curve.lows), _to_numbers(curve.highs)
        axes.fill_between(xs, *bounds, color=colour, alpha=0.22, linewidth=0)


def draw_bars(figure: Any, chart: Bars) -> None:
    """Draw bars by category."""
    axes = figure.subplots()
    places = list(range(len(chart.labels)))
    ranks = chart.ranks or [0.0] * len(places)
    colours = [pick_colour(WIDTHS, rank) for rank in ranks]
    axes.bar(places, _to_numbers(chart.values), color=colours, width=0.72)
    if chart.lows:
        spans = list(zip(places, chart.values, chart.lows, chart.highs, strict=True))
        whole = [
            (x, y, y - low, high - y)
            for x, y, low, high in spans
            if y is not None and low is not None and high is not None
        ]
        if whole:
            xs, ys, below, above = zip(*whole, strict=True)
            bounds = [[max(part, 0) for part in below], [max(part, 0) for part in above]]
            axes.errorbar(
                xs, ys, bounds, fmt="none", ecolor=INK, elinewidth=1.2, capsize=2.5, label="95% interval"
            )
    if chart.nulls:
        nulls = _to_numbers(chart.nulls)
        ends = [x - 0.45 for x in places], [x + 0.45 for x in places]
        axes.hlines(nulls, *ends, color=INK, linestyle=(0, (3, 2)), linewidth=1.2, label=_NULL_NAME)
    _set_names(axes.xaxis, chart.labels, places)
    _finish(figure, axes, chart.x_label, chart.y_label)


def draw_river(figure: Any, chart: River) -> None:
    """Draw areas stacked over a common axis."""
    axes = figure.subplots()
    colours = [pick_colour(WIDTHS, band.rank) for band in chart.bands]
    names = [show_controls(band.label) for band in chart.bands]
    axes.stackplot(
        chart.xs, [list(band.ys) for band in chart.bands], colors=colours, labels=names, linewidth=0
    )
    axes.margins(x=0)
    axes.set_ylim(bottom=0)
    _finish(figure, axes, chart.x_label, chart.y_label)


def draw_points(figure: Any, chart: Points) -> None:
    """Draw points by category, one a line."""
    axes = figure.subplots()
    places = list(range(len(chart.labels)))
    if chart.null_lows:
        lows, highs = _to_numbers(chart.null_lows), _to_numbers(chart.null_highs)
        sizes = [high - low for low, high in zip(lows, highs, strict=True)]
        axes.barh(places, sizes, left=lows, height=0.7, color=INK, alpha=0.18, label=_NULL_NAME)
    if chart.null is not None:
        axes.axvline(chart.null, color=INK, linestyle=(0, (3, 2)), linewidth=1)
    ranks = chart.ranks or [0.0] * len(places)
    for i, (value, rank) in enumerate(zip(chart.values, ranks, strict=True)):
        if value is None:
            continue
        colour = pick_colour(WIDTHS, rank)
        if chart.lows and chart.lows[i] is not None and chart.highs[i] is not None:
            axes.plot(
                [chart.lows[i], chart.highs[i]], [i, i], color=colour, linewidth=2, solid_capstyle="butt"
            )
        axes.plot([value], [i], color=colour, marker="o", markersize=5.5)
    axes.set_ylim(len(places) - 0.5, -0.5)
    axes.set_yticks(places, [_shorten(label) for label in chart.labels])
    axes.xaxis.get_major_locator().set_params(nbins=5)
    _finish(figure, axes, chart.x_label, "")


def _finish(figure: Any, axes: Any, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(axis="y" if y_label else "x", color=INK, alpha=0.13, linewidth=0.7)
    axes.set_axisbelow(True)
    for axis, scale in ((axes.xaxis, axes.get_xscale()), (axes.yaxis, axes.get_yscale())):
        if scale == "log" or hasattr(axis.get_major_formatter(), "set_useOffset"):
            axis.set_major_formatter(format_tick)
        if scale == "log":  # its own names of ticks are formulas, which are not drawn as such
            axis.set_minor_formatter(lambda value, place: "")
    handles, names = axes.get_legend_handles_labels()
    if len(names) > 1 or _NULL_NAME in names:
        figure.legend(handles, names, loc="outside lower left", ncols=3, handlelength=1.6, columnspacing=1.2)


def format_tick(value: float, _: int | None = None) -> str:
    """Return a number for an axis, short: 0.25, 12, 1.5k, 20M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _set_names(axis: Any, labels: Sequence[str], places: Sequence[int]) -> None:
    """Write the names of categories, so many as have room."""
    step = -(-len(labels) // 12)
    axis.set_ticks(places[::step], [_shorten(label) for label in labels[::step]])
    if max(map(len, labels), default=0) * min(len(labels), 12) > 44:
        axis.set_tick_params(rotation=60)


def _shorten(label: str) -> str:
    shown = show_controls(label)
    return shown if len(shown) <= 26 else shown[:25] + "…"


def _to_numbers(values: Known) -> list[float]:
    return [_NAN if value is None else value for value in values]
