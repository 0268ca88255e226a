"""Text coloured by what it activates: for pages and notebooks, for terminals, and plain."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from unicodedata import combining, east_asian_width

from hmoe.figures.colours import WIDTHS, pick_colour, split_colour
from hmoe.figures.svg import show_controls

_NUM_STEPS = len(WIDTHS)
_RESET, _BOLD = "\x1b[0m", "\x1b[1m"
_STYLE = """
.hmoe-text{font-family:ui-serif,Georgia,serif;line-height:2;max-width:46em}
.hmoe-text .hmoe-piece{white-space:pre-wrap;border-bottom-style:solid;border-radius:1px;cursor:help}
.hmoe-text .hmoe-piece:focus{outline:2px solid currentColor}
.hmoe-legend{font-family:system-ui,sans-serif;font-size:.85em;margin:.5em 0}
"""
_BAR_STYLE = """
.hmoe-row{display:flex;align-items:end;gap:.6em;font:.85em system-ui,sans-serif;max-width:46em}
.hmoe-row>span{width:5em}
.hmoe-row>b{flex:1;display:flex;align-items:end;gap:1px;height:2.4em;border-bottom:1px solid currentColor}
.hmoe-row i{flex:1;min-height:1px}
"""


@dataclass(frozen=True)
class TextPiece:
    """A part of a text that can be read: a token, or several that make one character.

    Attributes:
        text: as it stands in the text.
        ratio: share of the hidden units that it activates; None where nobody knows.
        details: lines that explain it.
    """

    text: str
    ratio: float | None
    details: tuple[str, ...] = ()


def find_scale(pieces: Sequence[TextPiece]) -> tuple[float, float]:
    """Return the smallest and the greatest ratio of a text, between which colours are spread."""
    known = [piece.ratio for piece in pieces if piece.ratio is not None]
    return (min(known), max(known)) if known else (0.0, 0.0)


def place_on_scale(ratio: float, scale: tuple[float, float]) -> float:
    """Return where a ratio lies between the ends of a scale, from 0 to 1; in the middle where all are equal."""
    low, high = scale
    return 0.5 if high <= low else min(max((ratio - low) / (high - low), 0.0), 1.0)


def render_coloured_html(pieces: Sequence[TextPiece]) -> str:
    """Return a text for a page: a line below each piece, the thicker and brighter the more it activates.

    Everything is escaped; details stand in the title of each piece and are read out with it.
    """
    scale = find_scale(pieces)
    steps = "".join(
        f".hmoe-w{step}{{border-bottom-color:{colour};border-bottom-width:{1 + step // 2}px}}"
        for step, colour in enumerate(WIDTHS)
    )
    body = "".join(_render_piece(piece, scale) for piece in pieces)
    legend = "".join(
        f'<span class="hmoe-piece hmoe-w{step}">&nbsp;&nbsp;</span>' for step in range(_NUM_STEPS)
    )
    return (
        f"<style>{_STYLE}{steps}</style>"
        f'<div class="hmoe-legend">activated hidden units: {scale[0]:.1%} '
        f'<span class="hmoe-text" aria-hidden="true">{legend}</span> {scale[1]:.1%}</div>'
        f'<div class="hmoe-text">{body}</div>'
    )


def render_layer_bars(ratios: Sequence[Sequence[float]], widths: Sequence[int]) -> str:
    """Return for each MoE layer a row of bars for a page: which share of a text's tokens each expert served.

    Args:
        ratios: share of the tokens, by layer and expert.
        widths: hidden units of each expert; bars stand narrow to wide, in the colours of their width.
    """
    order = sorted(range(len(widths)), key=lambda expert: (widths[expert], expert))
    rows = []
    for layer, shares in enumerate(ratios):
        names = [f"{widths[e]:,} units (expert {e}): {shares[e]:.1%} of the tokens" for e in order]
        bars = "".join(
            f'<i title="{name}" style="height:{shares[expert]:.1%};background:{pick_colour(WIDTHS, place)}"></i>'
            for expert, name, place in zip(order, names, _spread(len(order)), strict=True)
        )
        words = f"layer {layer}, experts narrow to wide: {'; '.join(names)}"
        picture = f'<b role="img" aria-label="{words}">{bars}</b>'
        rows.append(f'<div class="hmoe-row"><span>layer {layer}</span>{picture}</div>')
    caption = "share of the tokens that each expert served, narrow to wide"
    return (
        f'<style>{_BAR_STYLE}</style><div class="hmoe-legend">{caption}</div>{"".join(rows)}' if rows else ""
    )


def _spread(count: int) -> list[float]:
    return [place / max(count - 1, 1) for place in range(count)]


def _render_piece(piece: TextPiece, scale: tuple[float, float]) -> str:
    # A line break is shown and made: <br> keeps it where white space is not.
    lines = [escape(show_controls(line)) for line in piece.text.split("\n")]
    shown = "⏎<br>".join(lines)
    if piece.ratio is None:
        return f"<span>{shown}</span>"
    step = round(place_on_scale(piece.ratio, scale) * (_NUM_STEPS - 1))
    title = "&#10;".join(escape(show_controls(line), quote=True) for line in piece.details)
    return f'<span class="hmoe-piece hmoe-w{step}" tabindex="0" title="{title}">{shown}</span>'


def render_coloured_lines(
    pieces: Sequence[TextPiece], columns: int | None = None, has_truecolor: bool = False
) -> str:
    """Return a text for a terminal, with a legend: the upper third is bold too, so that colour is not the only sign.

    Args:
        pieces: of the text.
        columns: of the terminal, which is asked by default.
        has_truecolor: whether it knows 24-bit colours; else the nearest of 256.
    """
    columns = columns or shutil.get_terminal_size().columns
    scale = find_scale(pieces)
    lines = [
        "".join(_colour(piece, part, scale, has_truecolor) for piece, part in line)
        for line in _wrap_pieces(pieces, columns)
    ]
    marks = [TextPiece("■■", scale[0] + (scale[1] - scale[0]) * step / 8) for step in range(9)]
    bar = "".join(_colour(mark, mark.text, scale, has_truecolor) for mark in marks)
    legend = f"activated hidden units: {scale[0]:.1%} {bar} {scale[1]:.1%}"
    return "\n".join([*lines, "", legend]) + "\n"


def _colour(piece: TextPiece, text: str, scale: tuple[float, float], has_truecolor: bool) -> str:
    if piece.ratio is None or not text.strip():
        return text
    place = place_on_scale(piece.ratio, scale)
    red, green, blue = split_colour(pick_colour(WIDTHS, place))
    if has_truecolor:
        code = f"38;2;{red};{green};{blue}"
    else:
        code = f"38;5;{16 + 36 * round(red / 51) + 6 * round(green / 51) + round(blue / 51)}"
    return f"{_BOLD if place > 2 / 3 else ''}\x1b[{code}m{text}{_RESET}"


def _wrap_pieces(pieces: Sequence[TextPiece], columns: int) -> Iterator[list[tuple[TextPiece, str]]]:
    """Yield lines of (piece, part of its text), broken at line breaks and before what does not fit."""
    line: list[tuple[TextPiece, str]] = []
    used = 0
    for piece in pieces:
        for i, part in enumerate(piece.text.split("\n")):
            if i:
                yield line
                line, used = [], 0
            shown = show_controls(part)
            if used and used + measure_cells(shown) > columns:
                yield line
                line, used, shown = [], 0, shown.lstrip(" ")
            while measure_cells(shown) > columns:  # a piece that is wider than a line
                head = _cut_cells(shown, columns)
                yield [(piece, head)]
                shown = shown[len(head) :]
            line.append((piece, shown))
            used += measure_cells(shown)
    yield line


def measure_cells(text: str) -> int:
    """Return how many cells of a terminal a text takes: two for a letter of Chinese, none for an accent of its own."""
    return sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)


def _cut_cells(text: str, columns: int) -> str:
    """Return as much of the beginning of a text as fits, at least one character."""
    size = len(text)
    while size > 1 and measure_cells(text[:size]) > columns:
        size -= 1
    return text[:size]
