"""What a chart shows, as plain records: numbers, words and places on the scale of widths; None where there is none."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

Numbers = Sequence[float]
Known = Sequence[float | None]


@dataclass(frozen=True, kw_only=True)
class Described:
    """What every chart has.

    Attributes:
        title: what it shows, in words.
        description: its main numbers in sentences, for those who do not see it.
    """

    title: str
    description: str


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line, perhaps with a band.

    Attributes:
        label: its name in the legend, "" for none.
        xs, ys: its points; it is broken where y is None.
        lows, highs: of its band, at the same points.
        rank: place on the scale of widths, narrow 0 to wide 1; None: the colour of text.
        is_null: whether it is what chance gives, drawn dashed.
        is_line: whether its points are joined; otherwise each stands for itself.
    """

    label: str
    xs: Numbers
    ys: Known
    lows: Known = ()
    highs: Known = ()
    rank: float | None = 0.0
    is_null: bool = False
    is_line: bool = True


@dataclass(frozen=True, kw_only=True)
class Curves(Described):
    """Lines over a common axis.

    Attributes:
        curves: the lines.
        x_label, y_label: names of the axes, with units.
        log_x: whether the axis is logarithmic.
        whole_x: whether only whole numbers stand on the axis.
        null: what chance gives, a line across.
        from_zero: whether the y axis begins at 0.
    """

    curves: Sequence[Curve]
    x_label: str
    y_label: str
    log_x: bool = False
    whole_x: bool = False
    null: float | None = None
    from_zero: bool = False


@dataclass(frozen=True, kw_only=True)
class Bars(Described):
    """Bars by category, with intervals and marks of what chance gives.

    Attributes:
        labels: categories.
        values: heights.
        lows, highs: intervals; empty, or one a bar.
        nulls: what chance gives; empty, or one a bar.
        ranks: places on the scale of widths; empty: all alike.
        x_label, y_label: names of the axes, with units.
    """

    labels: Sequence[str]
    values: Known
    lows: Known = ()
    highs: Known = ()
    nulls: Known = ()
    ranks: Numbers = ()
    x_label: str
    y_label: str


@dataclass(frozen=True, kw_only=True)
class RiverBand:
    """A layer of a river.

    Attributes:
        label: its name in the legend.
        ys: its thickness at each x.
        rank: place on the scale of widths.
    """

    label: str
    ys: Numbers
    rank: float


@dataclass(frozen=True, kw_only=True)
class River(Described):
    """Areas stacked over a common axis.

    Attributes:
        xs: the axis.
        bands: from below to above.
        x_label, y_label: names of the axes, with units.
    """

    xs: Numbers
    bands: Sequence[RiverBand]
    x_label: str
    y_label: str


@dataclass(frozen=True, kw_only=True)
class HeatMap(Described):
    """A table of numbers as areas.

    Attributes:
        row_labels, column_labels: their names.
        values: by row and column.
        row_title, column_title: what rows and columns are.
        value_label: what the numbers are, with units.
        null: what chance gives; the scale is then one of differences with it in the middle.
        limits: smallest and greatest number of the scale; None: of the values.
        linkage: merges (left, right, height) as scipy's linkage has them, leaves numbered as rows; drawn above.
        digits: decimals of the numbers in the areas.
        pale: by row and column, whether an area has the colour of the null, whatever its number; () for none.
    """

    row_labels: Sequence[str]
    column_labels: Sequence[str]
    values: Sequence[Known]
    row_title: str
    column_title: str
    value_label: str
    null: float | None = None
    limits: tuple[float, float] | None = None
    linkage: Sequence[tuple[int, int, float]] = ()
    digits: int = 2
    pale: Sequence[Sequence[bool]] = ()


@dataclass(frozen=True, kw_only=True)
class Points(Described):
    """Points by category, one a line, with intervals and what chance gives.

    Attributes:
        labels: categories, from above to below.
        values: the points.
        lows, highs: intervals; empty, or one a point.
        null_lows, null_highs: bands of what chance gives; empty, or one a point.
        nulls: what chance gives, a mark for each point; empty, or one a point.
        null: what chance gives, a line across.
        null_name: what that is, in the key.
        ranks: places on the scale of widths; empty: all alike.
        x_label: name of the axis, with units.
    """

    labels: Sequence[str]
    values: Known
    lows: Known = ()
    highs: Known = ()
    null_lows: Known = ()
    null_highs: Known = ()
    nulls: Known = ()
    null: float | None = None
    null_name: str = "random routing"
    ranks: Numbers = ()
    x_label: str


@dataclass(frozen=True, kw_only=True)
class Panels(Described):
    """Small heat maps of one kind on one scale.

    Attributes:
        maps: each with its own short title.
        columns: of the grid.
    """

    maps: Sequence[HeatMap]
    columns: int = 3


def is_known(value: float | None) -> TypeGuard[float]:
    """Return whether there is a number that can be drawn: neither None nor NaN nor infinite."""
    return value is not None and math.isfinite(value)


Chart = Curves | Bars | River | HeatMap | Points | Panels
