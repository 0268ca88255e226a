"""Gives axes, names and legends their places in a picture, in pixels: measured by letters, since readers' fonts differ.

matplotlib's own layouts draw a picture twice to measure it, which takes longer than drawing it.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hmoe.figures.svg import show_controls

_LETTER, _LINE = 6.1, 13.0  # pixels of a letter and of a line of text
_PAD = 5.0
_TICK = 8.0  # between an axis and the numbers beside it
_KEY, _GAP = 18.0, 14.0  # of a mark in a legend, and behind its name
LEGEND_LINE = 16.0
DASHES = (0, (3, 2))


@dataclass(frozen=True)
class Key:
    """An entry of a legend.

    Attributes:
        name: what it explains.
        colour: of its mark.
        kind: "line", "dashes", "point", "area" or "band".
    """

    name: str
    colour: str
    kind: str = "line"


@dataclass(frozen=True)
class Room:
    """The part of a picture that is left for axes and their names.

    Attributes:
        width, height: of the picture in pixels.
        top, bottom: taken by its title, and by what stands below.
    """

    width: float
    height: float
    top: float
    bottom: float = _PAD


def measure_text(text: str) -> float:
    """Return about how many pixels wide a text is."""
    return _LETTER * max(map(len, text.split("\n")), default=0)


def wrap_label(text: str, pixels: float) -> str:
    """Return the name of an axis in lines that fit."""
    return textwrap.fill(show_controls(text), max(int(pixels / _LETTER), 12))


def arrange_legend(keys: Sequence[Key], width: float) -> list[list[Key]]:
    """Return the entries of a legend line by line."""
    lines: list[list[Key]] = []
    used = width
    for key in keys:
        needed = _KEY + 4 + measure_text(key.name) + _GAP
        if used + needed - _GAP > width - 2 * _PAD and not (lines and not lines[-1]):
            lines.append([])
            used = 0.0
        lines[-1].append(key)
        used += needed
    return lines


def draw_legend(figure: Any, keys: Sequence[Key], room: Room) -> Room:
    """Draw a legend at the bottom, and return the room above it."""
    lines = arrange_legend(keys, room.width)
    for place, line in enumerate(lines):
        y = room.bottom + LEGEND_LINE * (len(lines) - place - 0.5)
        x = _PAD
        for key in line:
            _draw_mark(figure, key, x, y, room)
            figure.text((x + _KEY + 4) / room.width, y / room.height, key.name, va="center_baseline")
            x += _KEY + 4 + measure_text(key.name) + _GAP
    return Room(room.width, room.height, room.top, room.bottom + LEGEND_LINE * len(lines) + 4 * bool(lines))


def _draw_mark(figure: Any, key: Key, x: float, y: float, room: Room) -> None:
    from matplotlib.lines import Line2D  # noqa: PLC0415 - optional extra
    from matplotlib.patches import Rectangle  # noqa: PLC0415

    if key.kind in ("area", "band"):
        corner, size = (x / room.width, (y - 4) / room.height), (_KEY / room.width, 8 / room.height)
        alpha = 0.18 if key.kind == "band" else None
        mark: Any = Rectangle(corner, *size, facecolor=key.colour, alpha=alpha, linewidth=0)
    elif key.kind == "point":
        middle = [(x + _KEY / 2) / room.width]
        mark = Line2D(middle, [y / room.height], color=key.colour, marker="o", markersize=4.5, linestyle="")
    else:
        style = DASHES if key.kind == "dashes" else "-"
        ends = [x / room.width, (x + _KEY) / room.width]
        mark = Line2D(ends, [y / room.height] * 2, color=key.colour, linestyle=style, linewidth=1.6)
    mark.set_transform(figure.transFigure)
    figure.add_artist(mark)


def place_axes(
    axes: Any, room: Room, x_label: str, y_label: str, upright: float = 0.0
) -> tuple[float, float]:
    """Put axes where their numbers and names have room, and return their left and right margin.

    Args:
        axes: those of matplotlib; what they show is drawn already.
        room: what they and their names may take.
        x_label: name below, "" for none.
        y_label: name to the left, "" for none.
        upright: pixels that names of columns need which do not lie; 0 where they do.
    """
    x_words = wrap_label(x_label, room.width - 70)
    y_words = wrap_label(y_label, room.height - room.top - room.bottom - 30)
    below = room.bottom + _TICK + (upright or _LINE) + (_count_pixels(x_words) if x_label else 0)
    height = max(room.height - room.top - 7 - below, 8)
    _set_margins(axes, room, 40, 20, below, height)  # as high as it will be: so many ticks has it
    numbers = max(map(measure_text, list_tick_texts(axes.yaxis)), default=0.0)
    left = _PAD + (_count_pixels(y_words) + 2 if y_label else 0) + numbers + _TICK
    right = 10.0 if upright else max(10.0, max(map(measure_text, list_tick_texts(axes.xaxis)), default=0) / 2)
    left, right = min(left, 0.6 * room.width), min(right, 0.1 * room.width)
    _set_margins(axes, room, left, right, below, height)
    if x_label:
        y = (room.bottom + _count_pixels(x_words) / 2 + 1) / room.height
        middle = (left + (room.width - left - right) / 2) / room.width
        axes.figure.text(middle, y, x_words, ha="center", va="center")
    if y_label:
        x = (_PAD + _count_pixels(y_words) / 2 - 1) / room.width
        axes.figure.text(
            x, (below + height / 2) / room.height, y_words, ha="center", va="center", rotation=90
        )
    return left, right


def _count_pixels(words: str) -> float:
    return _LINE * (words.count("\n") + 1) + 2


def _set_margins(axes: Any, room: Room, left: float, right: float, below: float, height: float) -> None:
    width = max(room.width - left - right, 8)
    axes.set_position((left / room.width, below / room.height, width / room.width, height / room.height))


def list_tick_texts(axis: Any) -> list[str]:
    """Return the numbers or names that stand beside an axis."""
    low, high = sorted(axis.get_view_interval())
    places = axis.get_majorticklocs()
    texts = axis.get_major_formatter().format_ticks(places)
    return [text for place, text in zip(places, texts, strict=False) if low <= place <= high]
