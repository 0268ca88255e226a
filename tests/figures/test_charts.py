import dataclasses
import hashlib
import itertools
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from hmoe import ConfigError
from hmoe.figures.charts import FORMS, choose_height, render_chart
from hmoe.figures.colours import WIDTHS
from hmoe.figures.draw_lines import format_tick
from hmoe.figures.records import Bars, Chart, Curve, Curves, HeatMap, Panels, Points, River, RiverBand
from tests.figures.samples import HARD, SAMPLES

BEGINNINGS = {"svg": b"<svg ", "png": b"\x89PNG\r\n", "pdf": b"%PDF-"}
NAN, INFINITY = float("nan"), float("inf")
WORDS: Any = {"title": "A", "description": "B"}
AXES: Any = {**WORDS, "x_label": "x", "y_label": "y"}
TABLE: Any = {**WORDS, "row_title": "r", "column_title": "c", "value_label": "v"}
EDGES: dict[str, Chart] = {
    "no curves": Curves(**AXES, curves=[]),
    "no points": Curves(**AXES, curves=[Curve(label="a", xs=[], ys=[])]),
    "unknown curve": Curves(
        **AXES, curves=[Curve(label="a", xs=[1, 2], ys=[None, NAN], lows=[None] * 2, highs=[INFINITY, NAN])]
    ),
    "one point, log": Curves(**AXES, curves=[Curve(label="a", xs=[5], ys=[1])], log_x=True),
    "zero on log": Curves(**AXES, curves=[Curve(label="a", xs=[0, 5, 9], ys=[1, 2, 3])], log_x=True),
    "no bars": Bars(**AXES, labels=[], values=[]),
    "unknown bars": Bars(
        **AXES, labels=["a", "b"], values=[None, NAN], lows=[None] * 2, highs=[None] * 2, nulls=[None] * 2
    ),
    "infinite bar": Bars(**AXES, labels=["a", "b"], values=[1, INFINITY], lows=[-INFINITY, 0], highs=[2, 2]),
    "64 bars": Bars(**AXES, labels=[HARD[:20]] * 64, values=list(range(-32, 32)), ranks=[i / 63 for i in range(64)]),
    "one step": River(**AXES, xs=[3], bands=[RiverBand(label="a", ys=[1], rank=0)]),
    "no bands": River(**AXES, xs=[1, 2], bands=[]),
    "no points by name": Points(**WORDS, labels=[], values=[], x_label="x"),
    "unknown points": Points(
        **WORDS, labels=["a"], values=[NAN], lows=[None], highs=[None], null_lows=[None], null_highs=[None], x_label="x"
    ),
    "no areas": HeatMap(**TABLE, row_labels=[], column_labels=[], values=[]),
    "unknown areas": HeatMap(**TABLE, row_labels=["a"], column_labels=["b", "c"], values=[[None, NAN]], null=2.0),
    "equal limits": HeatMap(**TABLE, row_labels=["a"], column_labels=["b"], values=[[1.0]], limits=(1.0, 1.0)),
    "unknown in large": HeatMap(
        **TABLE, row_labels=["a"] * 30, column_labels=["b"] * 30, values=[[None, NAN, INFINITY] * 10] * 30
    ),
    "no panels": Panels(**WORDS, maps=[]),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["curves", "bars", "river", "map", "points", "panels"])
def test_every_kind_in_every_form_and_twice_the_same(name: str, form: str) -> None:
    content = render_chart(SAMPLES[name], form)
    assert content.startswith(BEGINNINGS[form])
    assert content == render_chart(SAMPLES[name], form)
    if form == "png":
        width, height = (int.from_bytes(content[at : at + 4]) for at in (16, 20))
        assert (width, height) == (720, 2 * choose_height(SAMPLES[name]))


@pytest.mark.parametrize("name", EDGES)
def test_what_is_unknown_or_empty_is_left_out(name: str) -> None:
    assert b"</svg>" in render_chart(EDGES[name])


def test_other_processes_draw_the_same() -> None:
    wanted = (("tree", "svg"), ("bars", "svg"), ("bars", "pdf"))
    code = (
        "import hashlib; from hmoe.figures.charts import render_chart; from tests.figures.samples import SAMPLES\n"
        f"for name, form in {wanted}: print(hashlib.sha256(render_chart(SAMPLES[name], form)).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    output = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    ).stdout
    drawn = [render_chart(SAMPLES[name], form) for name, form in wanted]
    assert output.split() == [hashlib.sha256(content).hexdigest() for content in drawn]


def test_unknown_numbers_leave_gaps() -> None:
    bars = Bars(**AXES, labels=["a", "b"], values=[1, None])
    whole = dataclasses.replace(bars, values=[1, 1])
    colour = WIDTHS[0].encode()
    assert render_chart(whole).count(colour) == render_chart(bars).count(colour) + 1
    assert render_chart(SAMPLES["map"]).decode().count(">–</text>") == 4
    curve = Curve(label="", xs=[0, 1, 2, 3], ys=[1.0, None, 2.0, 3.0])
    broken = render_chart(Curves(**AXES, curves=[curve])).decode()
    filled = dataclasses.replace(curve, ys=[1.0, 1.5, 2.0, 3.0])
    assert broken.count("<use ") == render_chart(Curves(**AXES, curves=[filled])).decode().count("<use ") - 1


def test_a_point_between_gaps_is_marked_on_a_long_curve() -> None:
    xs = list(range(40))
    ys = [None if x in (9, 11) else 1.0 * x for x in xs]
    alone = Curve(label="", xs=xs, ys=ys)
    whole = dataclasses.replace(alone, ys=[float(x) for x in xs])
    counts = [
        render_chart(Curves(**AXES, curves=[curve])).decode().count("<use ") for curve in (alone, whole)
    ]
    assert counts[0] == counts[1] + 1


def test_sizes_and_titles() -> None:
    assert b'viewBox="0 0 500 300"' in render_chart(SAMPLES["bars"], size=(500, 300))
    assert render_chart(SAMPLES["bars"], size=(40, 30))  # no room for axes
    assert b"</text>" in render_chart(SAMPLES["bars"])
    shown, bare = (render_chart(SAMPLES["bars"], shows_title=shows).decode() for shows in (True, False))
    assert (shown.count("By width"), bare.count("By width")) == (2, 1)
    assert choose_height(EDGES["64 bars"]) > choose_height(SAMPLES["one bar"])


def test_whiskers_are_named() -> None:
    bars = Bars(**AXES, labels=["a"], values=[1], lows=[0.5], highs=[1.5])
    assert b"95% interval" in render_chart(bars)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (2.175, "2.175"), (2.15, "2.15"), (2.125, "2.125"), (0.1 + 0.2, "0.3"), (0.0, "0"), (-0.0, "0"), (12, "12"),
        (-0.25, "\u22120.25"), (1500, "1.5k"), (-1012.5, "\u22121.0125k"), (2e7, "20M"), (1.25e9, "1.25G"),
        (1e12, "1T"), (2.5e14, "250T"), (3e15, "3P"), (1e18, "1,000P"), (1e-5, "1e\u221205"),
    ],
)  # fmt: skip
def test_ticks_are_short_and_exact(value: float, shown: str) -> None:
    assert format_tick(value) == shown


def test_ticks_on_axes() -> None:
    def draw(ys: list[float], **more: Any) -> str:
        return render_chart(
            Curves(**AXES, curves=[Curve(label="", xs=[1e12, 1e13, 1e15], ys=ys)], **more)
        ).decode()

    svg = draw([2.1, 2.15, 2.2])
    ticks = [float(text) for text in re.findall(r">(2\.\d+)<", svg)]
    steps = [right - left for left, right in itertools.pairwise(ticks)]
    assert len(ticks) > 4
    assert steps == pytest.approx(steps[:1] * len(steps))  # rounded ones would not be evenly apart
    assert ">10T<" in draw([1, 2, 3], log_x=True)
    assert ">1P<" in draw([1, 2, 3], log_x=True)
    assert "mathdefault" not in draw([1, 2, 3], log_x=True)
    assert ">−0.5<" in render_chart(SAMPLES["map"]).decode()  # below the scale, as on all axes


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"^form = gif: must be one of svg, png, pdf$"):
        render_chart(SAMPLES["bars"], "gif")
    for prefix in ("", "1a", 'a"b', "a b", "é"):
        with pytest.raises(ConfigError, match=r"^prefix = .*: must be a letter"):
            render_chart(SAMPLES["bars"], prefix=prefix)


def test_without_matplotlib_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"^figures need the plot extra: pip install") as caught:
        render_chart(SAMPLES["bars"])
    assert "\n" not in str(caught.value)
