import dataclasses
import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from hmoe.figures.charts import render_chart
from hmoe.figures.records import Chart, Curves, HeatMap
from hmoe.figures.svg import INK, adapt_svg, escape_xml, show_controls
from tests.figures.samples import HARD, SAMPLES

SVG = "{http://www.w3.org/2000/svg}"
SHOWN = show_controls(HARD)


def draw(chart: Chart, prefix: str = "chart", embedded: bool = True) -> str:
    return render_chart(chart, prefix=prefix, embedded=embedded).decode()


@pytest.mark.parametrize("name", SAMPLES)
def test_a_page_can_hold_it(name: str) -> None:
    chart = SAMPLES[name]
    svg = draw(chart)
    root = ET.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    assert (root.get("role"), root.get("width"), root.get("height")) == ("img", "100%", None)
    assert re.fullmatch(r"0 0 360 \d+", root.get("viewBox", ""))
    assert [part.tag for part in root][:2] == [f"{SVG}title", f"{SVG}desc"]
    assert (root[0].text, root[1].text) == (chart.title, chart.description)
    assert root.get("aria-labelledby") == f"{root[0].get('id')} {root[1].get('id')}"
    assert re.findall(r"\w+://[^\"' ]*", svg) == ["http://www.w3.org/2000/svg"]
    tags = {part.tag.removeprefix(SVG) for part in root.iter()}
    assert not tags & {
        "script",
        "style",
        "foreignObject",
        "a",
        "metadata",
    }  # a style would hold for all the page
    links = [part.get("href") for part in root.iter() if part.get("href")]
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links if link)
    texts = [part for part in root.iter(f"{SVG}text")]
    assert texts
    for text in texts:
        colour = re.search(r"fill: ([^;]+)", text.get("style", ""))
        assert colour is None or colour[1] in ("currentColor", "#000000", "#ffffff")  # the last two on areas
        assert "system-ui" in text.get("style", "")
    assert INK not in svg


@pytest.mark.parametrize("name", SAMPLES)
def test_ids_are_unique_in_a_page_and_lead_somewhere(name: str) -> None:
    page = draw(SAMPLES[name], "a") + draw(SAMPLES[name], "b")
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert all(name.startswith(("a-", "b-")) for name in ids)
    links = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', page)
    assert links
    assert {one or other for one, other in links} <= set(ids)


@pytest.mark.parametrize("name", SAMPLES)
def test_hard_texts_stay_texts(name: str) -> None:
    chart = dataclasses.replace(SAMPLES[name], title=HARD, description=HARD)
    if isinstance(chart, HeatMap):
        chart = dataclasses.replace(chart, value_label=HARD, row_title=HARD, column_title=HARD)
    elif not hasattr(chart, "maps"):
        labels: Any = {name: HARD for name in ("x_label", "y_label") if hasattr(chart, name)}
        chart = dataclasses.replace(chart, **labels)
    svg = draw(chart)
    root = ET.fromstring(svg)
    assert "<script" not in svg
    assert (root[0].text, root[1].text) == (SHOWN, SHOWN)
    texts = ["".join(part.itertext()) for part in root.iter(f"{SVG}text")]
    # The title and the names of the axes; long ones have several lines.
    num_names = (
        3 if isinstance(chart, HeatMap) else 0 if hasattr(chart, "maps") else 1 + hasattr(chart, "y_label")
    )
    assert "".join("".join(texts).split()).count("".join(SHOWN.split())) == 1 + num_names


def test_hard_names_of_curves_and_columns_stay_texts() -> None:
    curves, table = SAMPLES["curves"], SAMPLES["map"]
    assert isinstance(curves, Curves)
    assert isinstance(table, HeatMap)
    curve = dataclasses.replace(curves.curves[0], label=HARD)
    svg = draw(dataclasses.replace(curves, curves=[curve]))
    assert SHOWN in ["".join(part.itertext()) for part in ET.fromstring(svg).iter(f"{SVG}text")]
    svg = draw(dataclasses.replace(table, row_labels=[HARD] * 4, column_labels=[HARD] * 8))
    texts = ["".join(part.itertext()) for part in ET.fromstring(svg).iter(f"{SVG}text")]
    assert texts.count(SHOWN[:25] + "…") > 4


def test_alone_it_follows_the_theme_and_in_a_page_the_page() -> None:
    assert "prefers-color-scheme:dark" in draw(SAMPLES["bars"], embedded=False)
    assert "prefers-color-scheme" not in draw(SAMPLES["bars"])


def test_only_tags_are_changed() -> None:
    drawn = (
        f'<svg viewBox="0 0 1 2"><g id="x"/><use xlink:href="#x"/><text>id="x" href="#x" {INK}</text></svg>'
    )
    svg = adapt_svg(drawn, "p", "A", "B", True)
    assert '<g id="p-x"/><use href="#p-x"/><text>id="x" href="#x" ' + INK + "</text></svg>" in svg


def test_characters() -> None:
    assert escape_xml('<a b="c">&\n') == "&lt;a b=&quot;c&quot;&gt;&amp;\u240a"
    every = show_controls("".join(map(chr, [*range(0x300), 0x202E, 0x2067, 0xD800, 0xFFFE, 0xFFFF])))
    ET.fromstring(f"<a>{escape_xml(every)}</a>".encode())
    assert every[0x1B] == "\u241b"
    assert every[0x7F] == "\u2421"
    assert every[0x85] == "\ufffd"
    assert set(every[0x300:]) == {"\ufffd"}
    assert show_controls("é 中 \U0001f600") == "é 中 \U0001f600"
