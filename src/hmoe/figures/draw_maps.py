"""Draws tables of numbers as areas onto a figure of matplotlib: heat maps, small multiples, dendrograms."""

from collections.abc import Sequence
from typing import Any

from hmoe.figures.colours import AMOUNTS, DIFFERENCES, choose_text_colour, pick_colour
from hmoe.figures.draw_lines import add_axes, set_tick_format, shorten_label
from hmoe.figures.layout import Room, measure_text, place_axes
from hmoe.figures.records import HeatMap, Panels, is_known
from hmoe.figures.svg import INK, show_controls

_NARROWEST, _LOWEST = 27, 13  # pixels of an area with a number in it
SCALE = 46.0  # pixels that the scale below takes
TREE = 60.0  # those of a dendrogram
PANEL_TITLE = 18.0  # those above each of several small maps
_PANEL_GAP = 10.0
_MOST_DRAWN = 600  # areas; larger tables are a bitmap


def draw_heat_map(figure: Any, chart: HeatMap, room: Room) -> None:
    """Draw a heat map, with a dendrogram above if it has one, and the scale below."""
    axes, tree = add_axes(figure), TREE if chart.linkage else 0
    limits = _find_limits([chart])
    _draw_areas(axes, chart, limits)
    upright = _name_axes(axes, chart)
    below = Room(room.width, room.height, room.top + tree, room.bottom + SCALE)
    left, right = place_axes(axes, below, chart.column_title, chart.row_title, upright)
    cell_width = (room.width - left - right) / max(len(chart.column_labels), 1)
    if cell_width >= _NARROWEST and len(chart.row_labels) <= 20:
        _write_numbers(axes, chart, limits)
    if chart.linkage:
        above = figure.add_axes((0.1, 0.1, 0.8, 0.8))
        box = axes.get_position()
        above.set_position((box.x0, box.y1 + 4 / room.height, box.width, (tree - 6) / room.height))
        above.set_xlim(axes.get_xlim())
        _draw_dendrogram(above, chart.linkage, len(chart.column_labels))
    _draw_scale(figure, chart, limits, room, left, right)


def draw_panels(figure: Any, chart: Panels, room: Room) -> None:
    """Draw small heat maps on one scale, each with its title only."""
    if not chart.maps:
        return
    rows = -(-len(chart.maps) // chart.columns)
    limits = _find_limits(chart.maps)
    width = (room.width - 2 * _PANEL_GAP) / chart.columns
    height = (room.height - room.top - room.bottom - SCALE - _PANEL_GAP) / rows
    for i, panel in enumerate(chart.maps):
        row, column = divmod(i, chart.columns)
        top = room.height - room.top - row * height - PANEL_TITLE
        axes = add_axes(figure)
        _draw_areas(axes, panel, limits)
        axes.set_xticks([])
        axes.set_yticks([])
        size = max(width - _PANEL_GAP, 8), max(height - PANEL_TITLE - 4, 8)
        left = _PANEL_GAP * 1.5 + column * width
        axes.set_position(
            (left / room.width, (top - size[1]) / room.height, size[0] / room.width, size[1] / room.height)
        )
        figure.text(left / room.width, (top + 4) / room.height, show_controls(panel.title))
    _draw_scale(figure, chart.maps[0], limits, room, 2 * _PANEL_GAP, 2 * _PANEL_GAP)


def _find_limits(maps: Sequence[HeatMap]) -> tuple[float, float]:
    """Return the ends of the scale of several maps; with a null it is in the middle."""
    if maps[0].limits is not None:
        low, high = maps[0].limits
        return (low, high) if high > low else (low - 0.5, low + 0.5)
    known = [value for chart in maps for row in chart.values for value in row if is_known(value)]
    null = maps[0].null
    low, high = min(known, default=null or 0.0), max(known, default=null or 0.0)
    if null is not None:
        reach = max(high - null, null - low) or 1.0
        return null - reach, null + reach
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _pick_area_colour(
    chart: HeatMap, row: int, column: int, value: float, limits: tuple[float, float]
) -> str:
    scale = AMOUNTS if chart.null is None else DIFFERENCES
    if chart.null is not None and chart.pale and chart.pale[row][column]:
        value = chart.null
    return pick_colour(scale, (value - limits[0]) / (limits[1] - limits[0]))


def _make_colour_map(chart: HeatMap) -> Any:
    from matplotlib.colors import LinearSegmentedColormap  # noqa: PLC0415 - optional extra

    return LinearSegmentedColormap.from_list("hmoe", AMOUNTS if chart.null is None else DIFFERENCES)


def _draw_areas(axes: Any, chart: HeatMap, limits: tuple[float, float]) -> None:
    """Draw the areas, row 0 above; those without a number stay empty."""
    num_rows, num_columns = len(chart.row_labels), len(chart.column_labels)
    for spine in axes.spines.values():
        spine.set_visible(True)
    axes.set_xlim(-0.5, max(num_columns, 1) - 0.5)
    axes.set_ylim(max(num_rows, 1) - 0.5, -0.5)
    if num_rows * num_columns > _MOST_DRAWN:
        values = [[value if is_known(value) else float("nan") for value in row] for row in chart.values]
        colours = _make_colour_map(chart)
        axes.imshow(
            values, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto", interpolation="nearest"
        )
        return
    from matplotlib.collections import PolyCollection  # noqa: PLC0415 - optional extra

    cells = [(row, column) for row in range(num_rows) for column in range(num_columns)]
    known = [(row, column, chart.values[row][column]) for row, column in cells]
    corners, colours = [], []
    for row, column, value in known:
        if is_known(value):
            left, right, top, bottom = column - 0.5, column + 0.5, row - 0.5, row + 0.5
            corners.append([(left, top), (right, top), (right, bottom), (left, bottom)])
            colours.append(_pick_area_colour(chart, row, column, value, limits))
    # Edges of the same colour close the seams that renderers leave between areas.
    axes.add_collection(PolyCollection(corners, facecolors=colours, edgecolors=colours, linewidths=0.4))


def _write_numbers(axes: Any, chart: HeatMap, limits: tuple[float, float]) -> None:
    for row, values in enumerate(chart.values):
        for column, value in enumerate(values):
            text, colour = "–", INK
            if is_known(value):
                text = f"{value:.{chart.digits}f}".replace("-", "\u2212")
                colour = choose_text_colour(_pick_area_colour(chart, row, column, value, limits))
            axes.text(column, row, text, color=colour, ha="center", va="center", fontsize=10)


def _name_axes(axes: Any, chart: HeatMap) -> float:
    """Write the names of rows and columns, and return how many pixels those of columns need that stand upright."""
    columns, rows = chart.column_labels, chart.row_labels
    fits = count_fitting(columns)
    is_upright = len(columns) > fits
    step = max(-(-len(columns) // (20 if is_upright else fits)), 1)
    places = list(range(0, len(columns), step))
    axes.set_xticks(places, [shorten_label(columns[i]) for i in places], rotation=90 if is_upright else 0)
    step = max(-(-len(rows) // 20), 1)
    places = list(range(0, len(rows), step))
    axes.set_yticks(places, [shorten_label(rows[i]) for i in places])
    axes.tick_params(length=2)
    return max(measure_text(shorten_label(name)) for name in columns) + 4 if is_upright else 0.0


def count_fitting(columns: Sequence[str]) -> int:
    """Return how many names of columns have room beside each other; with more they stand upright."""
    longest = max((len(shorten_label(name)) for name in columns), default=1)
    return max(1, int(290 / (7 * longest + 4)))


def _draw_scale(
    figure: Any, chart: HeatMap, limits: tuple[float, float], room: Room, left: float, right: float
) -> None:
    """Draw the scale of colours at the bottom of the room, with its numbers and what they are."""
    axes = add_axes(figure)
    colours = _make_colour_map(chart)
    axes.imshow(
        [[place / 63 for place in range(64)]],
        cmap=colours,
        aspect="auto",
        extent=(*limits, 0, 1),
        vmin=0,
        vmax=1,
    )
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
    axes.xaxis.get_major_locator().set_params(nbins=5)
    set_tick_format(axes.xaxis)
    width = max(room.width - left - right, 8) / room.width
    axes.set_position((left / room.width, (room.bottom + 33) / room.height, width, 7 / room.height))
    words = show_controls(chart.value_label)
    middle = min(
        max(left + width * room.width / 2, measure_text(words) / 2), room.width - measure_text(words) / 2
    )
    figure.text(middle / room.width, (room.bottom + 7) / room.height, words, ha="center", va="center")


def _draw_dendrogram(axes: Any, linkage: Sequence[tuple[int, int, float]], num_leaves: int) -> None:
    """Draw merges above leaves, which stand in the order of the tree, so that no lines cross."""
    places = [float(i) for i in range(num_leaves)]
    heights, sizes = [0.0] * num_leaves, [1] * num_leaves
    for left, right, height in linkage:
        xs = [places[left], places[left], places[right], places[right]]
        axes.plot(xs, [heights[left], height, height, heights[right]], color=INK, linewidth=1)
        size = sizes[left] + sizes[right]
        # In the middle of its leaves, so that a merge of neighbours stands above them.
        places.append((places[left] * sizes[left] + places[right] * sizes[right]) / size)
        heights.append(height)
        sizes.append(size)
    axes.set_ylim(0, (max(heights) or 1) * 1.05)
    axes.tick_params(bottom=False, labelbottom=False)
    axes.spines["bottom"].set_visible(False)
    axes.yaxis.get_major_locator().set_params(nbins=3)
    set_tick_format(axes.yaxis)
