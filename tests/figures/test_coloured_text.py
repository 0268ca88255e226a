import re
import xml.etree.ElementTree as ET

import pytest

from hmoe.figures.coloured_text import (
    TextPiece,
    find_scale,
    place_on_scale,
    render_coloured_html,
    render_coloured_lines,
    render_layer_bars,
)
from hmoe.figures.colours import WIDTHS, compute_contrast, compute_luminance

ANSI = re.compile(r"\x1b\[[0-9;]*m")
PIECES = [
    TextPiece("She", 0.2, ("token 0, 20.0%", 'layer 0: "x" <b>')),
    TextPiece(" <script>alert(1)</script>", 0.5),
    TextPiece("\nsaid\x1b[31m", 0.3),
    TextPiece(" &", None),
]


def test_html_shows_the_text_and_runs_nothing_of_it() -> None:
    html = render_coloured_html(PIECES)
    assert "<script" not in html
    assert "\x1b" not in html
    tree = ET.fromstring("<div>" + html.replace("&nbsp;", " ").replace("<br>", "<br/>") + "</div>")
    shown = "".join(tree.findall("div")[1].itertext())
    assert shown == "She <script>alert(1)</script>⏎said\u241b[31m &"
    spans = tree.findall("div")[1].findall("span")
    assert [span.get("class") for span in spans] == [
        "hmoe-piece hmoe-w0", "hmoe-piece hmoe-w8", "hmoe-piece hmoe-w3", None,
    ]  # fmt: skip
    assert spans[0].get("title") == 'token 0, 20.0%\nlayer 0: "x" <b>'
    assert all(span.get("tabindex") == "0" for span in spans[:3])  # details can be reached without a mouse
    assert "http" not in html
    assert "20.0%" in html
    assert "50.0%" in html


def test_more_is_brighter_and_thicker() -> None:
    html = render_coloured_html(PIECES)
    thickness = [int(size) for size in re.findall(r"border-bottom-width:(\d)px", html)]
    assert thickness == sorted(thickness)
    assert thickness[0] < thickness[-1]
    luminance = [compute_luminance(colour) for colour in WIDTHS]
    assert luminance == sorted(luminance)
    assert all(
        compute_contrast(colour, ground) >= 3 for colour in WIDTHS for ground in ("#ffffff", "#111111")
    )


@pytest.mark.parametrize("columns", [8, 20, 80])
@pytest.mark.parametrize("has_truecolor", [False, True])
def test_terminal_lines_fit_and_hold_the_whole_text(columns: int, has_truecolor: bool) -> None:
    text = render_coloured_lines(PIECES, columns, has_truecolor)
    lines = ANSI.sub("", text).split("\n")
    body = lines[: lines.index("")]
    assert all(len(line) <= columns for line in body)
    joined = "".join(body).replace(" ", "")
    assert joined == "She<script>alert(1)</script>said\u241b[31m&"
    assert ("38;2;" in text) == has_truecolor
    assert ("38;5;" in text) != has_truecolor
    assert "activated hidden units: 20.0%" in lines[-2]


def test_scales() -> None:
    assert find_scale(PIECES) == (0.2, 0.5)
    assert place_on_scale(0.35, (0.2, 0.5)) == pytest.approx(0.5)
    assert place_on_scale(0.2, (0.2, 0.2)) == 0.5
    assert find_scale([TextPiece("x", None)]) == (0.0, 0.0)
    assert "x" in render_coloured_lines([TextPiece("x", None)], 10)


def test_wide_letters_and_accents_are_measured_in_cells() -> None:
    text = render_coloured_lines([TextPiece("漢字" * 5, 0.2), TextPiece("e\u0301" * 9, 0.4)], 8)
    body = ANSI.sub("", text).split("\n\n", maxsplit=1)[0].split("\n")
    assert body == ["漢字漢字", "漢字漢字", "漢字", "e\u0301" * 8, "e\u0301"]


def test_bars_of_layers_are_ordered_by_width() -> None:
    html = render_layer_bars([[0.25, 1.0, 0.0]], [48, 16, 1024])
    assert re.findall(r'title="([^"]*)" style="height:([\d.]+)%', html) == [
        ("16 units (expert 1): 100.0% of the tokens", "100.0"),
        ("48 units (expert 0): 25.0% of the tokens", "25.0"),
        ("1,024 units (expert 2): 0.0% of the tokens", "0.0"),
    ]
    assert html.count('role="img"') == 1
    assert render_layer_bars([], []) == ""
