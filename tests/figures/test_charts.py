"""Pictures of every kind of chart: valid, of one page, the same each time, and nothing in them runs or is fetched."""

import math
import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise

import pytest

from hmoe.errors import ConfigError
from hmoe.figures.charts import render_chart
from hmoe.figures.colours import (
    AMOUNTS,
    DIFFERENCES,
    WIDTHS,
    choose_text_colour,
    compute_contrast,
    compute_luminance,
    split_colour,
)
from hmoe.figures.records import Bars, Chart, Curve, Curves, HeatMap, Panels, Points, River, RiverBand

SVG = "{http://www.w3.org/2000/svg}"
TRAP = '<script>alert("1")</script> $x^2$ id="a" \x1b[31m'
WORDS = {"title": f"Title {TRAP}", "description": f"Words & {TRAP}"}
MAP = HeatMap(
    row_labels=["0", TRAP], column_labels=["16", "漢"], values=[[0.1, None], [0.3, 0.4]],
    row_title="layer", column_title="units", value_label="share", **WORDS,
)  # fmt: skip
CHARTS: dict[str, Chart] = {
    "curves": Curves(
        curves=[Curve(label=TRAP, xs=[1, 10, 1000], ys=[1, None, 2], lows=[0, None, 1], highs=[2, None, 3])],
        x_label="tokens", y_label="%", log_x=True, null=1.5, **WORDS,
    ),
    "bars": Bars(
        labels=["16", TRAP], values=[1, None], lows=[0.5, None], highs=[2, None], nulls=[1, 1], ranks=[0, 1],
        x_label="units", y_label="%", **WORDS,
    ),
    "river": River(
        xs=[0, 1e6], bands=[RiverBand(label="16", ys=[1, 2], rank=0), RiverBand(label="32", ys=[2, 1], rank=1)],
        x_label="tokens", y_label="parameters", **WORDS,
    ),
    "map": MAP,
    "tree": replace(MAP, row_labels=["0", "1", "2"], column_labels=["0", "1", "2"], null=0.5,
                    values=[[0, 1, 2], [1, 0, 1], [2, 1, 0]], linkage=[(0, 2, 0.5), (1, 3, 1.0)]),
    "bitmap": replace(MAP, row_labels=["a"] * 30, column_labels=["b"] * 30,
                      values=[[i * j for i in range(30)] for j in range(30)]),
    "points": Points(
        labels=["nll", TRAP], values=[0.2, None], lows=[0.1, None], highs=[0.3, None], null_lows=[-0.1, -0.1],
        null_highs=[0.1, 0.1], null=0, x_label="correlation", **WORDS,
    ),
    "panels": Panels(maps=[MAP] * 4, columns=3, **WORDS),
}  # fmt: skip


def parse(name: str, prefix: str = "a") -> tuple[str, ET.Element]:
    text = render_chart(CHARTS[name], prefix=prefix).decode()
    return text, ET.fromstring(text)


@pytest.mark.parametrize("name", CHARTS)
def test_an_svg_is_a_piece_of_a_page(name: str) -> None:
    text, root = parse(name)
    assert text.startswith("<svg ")
    assert root.get("role") == "img"
    assert (root.get("width"), root.get("height")) == ("100%", None)
    assert re.fullmatch(r"0 0 360 \d+", root.get("viewBox", ""))
    words = [root.find(f"{SVG}title"), root.find(f"{SVG}desc")]
    assert [word.get("id") for word in words if word is not None] == root.get("aria-labelledby", "").split()
    assert [word.text for word in words if word is not None] == [
        value.replace("\x1b", "\u241b") for value in WORDS.values()
    ]
    tags = {element.tag for element in root.iter()}
    assert not tags & {
        f"{SVG}{tag}" for tag in ("script", "style", "metadata")
    }  # a rule would hold in the whole page
    links = re.findall(r"""(?:href|src)="([^"]*)"|url\(([^)]*)\)""", re.sub(r">[^<]*<", "><", text))
    assert all((link or url).startswith(("#a-", "data:image/png;")) for link, url in links)
    assert text.count("http") == 1  # of the namespace


@pytest.mark.parametrize("name", CHARTS)
def test_text_is_text_in_the_colour_of_the_page(name: str) -> None:
    text, root = parse(name)
    shown = [element for element in root.iter(f"{SVG}text")]
    assert shown
    styles = [element.get("style", "") for element in shown]
    assert all("system-ui" in style for style in styles)
    assert all(float(size) >= 10 for style in styles for size in re.findall(r"([\d.]+)px", style))
    assert "currentColor" in text
    assert "#010203" not in text
    background = root.find(f"{SVG}g/{SVG}g/{SVG}path")
    assert background is not None
    assert background.get("style") == "fill: none"


def test_labels_are_shown_as_they_are() -> None:
    _, root = parse("curves")
    shown = ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]
    assert TRAP.replace("\x1b", "\u241b") in shown
    assert {"1", "10", "100", "1k"} <= set(shown)  # of the logarithmic axis


def test_ids_differ_between_charts_of_a_page() -> None:
    roots = [parse("bars", "a")[1], parse("bars", "b")[1], parse("tree", "c")[1]]
    ids = [element.get("id") for root in roots for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids)) > 30
    for root in roots:
        own = {element.get("id") for element in root.iter()}
        links = [e.get("href", "")[1:] for e in root.iter() if e.get("href", "").startswith("#")]
        clips = re.findall(r"url\(#([^)]*)\)", ET.tostring(root).decode())
        assert links
        assert {*links, *clips} <= own


@pytest.mark.parametrize("form", ["svg", "png", "pdf"])
def test_the_same_chart_is_the_same_bytes(form: str) -> None:
    first, second = (render_chart(CHARTS["bars"], form) for _ in range(2))
    assert first == second
    assert first.startswith({"svg": b"<svg", "png": b"\x89PNG", "pdf": b"%PDF"}[form])


def test_in_a_file_of_its_own_it_follows_the_theme() -> None:
    text = render_chart(CHARTS["bars"], embedded=False).decode()
    assert "prefers-color-scheme:dark" in text
    ET.fromstring(text)


def test_what_cannot_be_drawn_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="form = gif: must be one of svg, png, pdf"):
        render_chart(CHARTS["bars"], "gif")
    with pytest.raises(ConfigError, match="prefix = '1 a'"):
        render_chart(CHARTS["bars"], prefix="1 a")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match="figures need the plot extra"):
        render_chart(CHARTS["bars"])


# What people with each kind of colour blindness see (Machado, Oliveira, Fernandes 2009), linear RGB -> linear RGB.
BLINDNESS = {
    "normal": [(1, 0, 0), (0, 1, 0), (0, 0, 1)],
    "protan": [(0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)],
    "deutan": [(0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)],
    "tritan": [(1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)],
}  # fmt: skip


TO_XYZ = [
    (0.4124 / 0.9505, 0.3576 / 0.9505, 0.1805 / 0.9505),
    (0.2126, 0.7152, 0.0722),
    (0.0193 / 1.089, 0.1192 / 1.089, 0.9505 / 1.089),
]


def see_colour(colour: str, kind: str) -> tuple[float, float, float]:
    """CIELAB of a colour as people of a kind see it."""
    parts = [part / 255 for part in split_colour(colour)]
    linear = [((part + 0.055) / 1.055) ** 2.4 if part > 0.04045 else part / 12.92 for part in parts]
    seen = [sum(a * b for a, b in zip(row, linear, strict=True)) for row in BLINDNESS[kind]]
    xyz = [max(sum(a * b for a, b in zip(row, seen, strict=True)), 0) for row in TO_XYZ]
    x, y, z = (part ** (1 / 3) if part > 0.008856 else 7.787 * part + 16 / 116 for part in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("kind", BLINDNESS)
def test_widths_differ_for_everybody(kind: str) -> None:
    seen = [see_colour(colour, kind) for colour in WIDTHS]
    assert all(math.dist(a, b) > 8 for a, b in pairwise(seen))  # a difference of 2.3 can just be seen
    assert math.dist(seen[0], seen[-1]) > 80


def test_scales_are_ordered_by_luminance_and_carry_text() -> None:
    for scale in (WIDTHS, AMOUNTS, DIFFERENCES[:5], DIFFERENCES[:3:-1]):
        luminance = [compute_luminance(colour) for colour in scale]
        assert all(a < b for a, b in pairwise(luminance))
    for colour in (*WIDTHS, *AMOUNTS, *DIFFERENCES):
        assert compute_contrast(colour, choose_text_colour(colour)) >= 4.5
    assert compute_contrast("#000000", "#ffffff") == pytest.approx(21)
    assert compute_contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # a known pair of WCAG
