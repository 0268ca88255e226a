"""Names, numbers and legends have room, in pixels."""

import re
import xml.etree.ElementTree as ET

import pytest

from hmoe.figures.charts import WIDTH, choose_height, render_chart
from hmoe.figures.layout import Key, arrange_legend, measure_text, wrap_label
from hmoe.figures.records import Bars, Points
from tests.figures.samples import SAMPLES


def test_legends_break_into_lines_that_fit() -> None:
    keys = [Key("a" * 20, "#000000")] * 5
    assert [len(line) for line in arrange_legend(keys, 360)] == [2, 2, 1]
    assert [len(line) for line in arrange_legend(keys, 10)] == [1] * 5
    assert arrange_legend([], 360) == []


def test_names_of_axes_break_where_they_are_too_long() -> None:
    assert wrap_label("hidden units of the expert", 90) == "hidden units\nof the expert"
    assert measure_text("ab\nabcd") == measure_text("abcd") > measure_text("")


@pytest.mark.parametrize("name", SAMPLES)
def test_texts_stand_inside_the_picture(name: str) -> None:
    root = ET.fromstring(render_chart(SAMPLES[name]))
    height = choose_height(SAMPLES[name])
    places = []
    for text in root.iter("{http://www.w3.org/2000/svg}text"):
        if "rotate(-0" in (text.get("transform") or "rotate(-0"):
            x, y = find_place(text)
            width = measure_text("".join(text.itertext()))
            anchor = re.search(r"text-anchor: (\w+)", text.get("style") or "")
            left = x - width * {"middle": 0.5, "end": 1}.get(anchor[1] if anchor else "", 0)
            places.append((left, left + width, y))
    assert places
    assert all(left >= -3 and right <= WIDTH + 12 and 0 < y < height for left, right, y in places)


def find_place(text: ET.Element) -> tuple[float, float]:
    moved = re.search(r"translate\(([-\d.]+) ([-\d.]+)\)", text.get("transform") or "")
    if moved:
        return float(moved[1]), float(moved[2])
    return float(text.get("x") or 0), float(text.get("y") or 0)


def test_points_have_marks_of_chance_each() -> None:
    chart = Points(
        title="A", description="B", labels=["a", "b"], values=[1, 2], nulls=[1.5, None], x_label="x"
    )
    assert b"random routing" in render_chart(chart)
    without = Points(
        title="A", description="B", labels=["a", "b"], values=[1, 2], nulls=[None, None], x_label="x"
    )
    assert b"random routing" not in render_chart(without)


def test_pictures_grow_by_what_stands_below() -> None:
    plain = Bars(title="A", description="B", labels=["a"], values=[1.0], x_label="x", y_label="y")
    named = Bars(
        title="A", description="B", labels=["a"], values=[1.0], nulls=[2.0], x_label="x", y_label="y"
    )
    assert choose_height(named) == choose_height(plain) + 16
