"""A chart of each kind, with what is hard to draw in it."""

import dataclasses

from hmoe.figures.records import Bars, Chart, Curve, Curves, HeatMap, Panels, Points, River, RiverBand

HARD = 'a <script>alert("x")</script> & $x^2$ $$ \U0001f600 \x1b[31m\x00\n\u202e id="y" url(#z) href="#w" #010203'


def _make_map(rows: int, columns: int, title: str = "Table", null: float | None = None) -> HeatMap:
    return HeatMap(
        title=title,
        description="Numbers from -0.5 to 1.",
        row_labels=[f"row {i}" for i in range(rows)],
        column_labels=[str(16 * (i + 1)) for i in range(columns)],
        values=[
            [None if i == j else ((i * 7 + j * 3) % 13) / 10 - 0.2 for j in range(columns)]
            for i in range(rows)
        ],
        row_title="MoE layer",
        column_title="hidden units of the expert",
        value_label="share of the tokens",
        null=null,
    )


SAMPLES: dict[str, Chart] = {
    "curves": Curves(
        title="Loss over training, of which the title is so long that it has two lines",
        description="From 3 to 2.",
        curves=[
            Curve(label="hmoe", xs=[0, 1000, 2000, 3000], ys=[3.0, None, 2.4, 2.2], rank=1.0,
                  lows=[2.9, None, 2.3, 2.1], highs=[3.1, None, 2.5, 2.3]),
            Curve(label="moe", xs=[0, 1000, 2000, 3000], ys=[3.1, 2.7, 2.5, -0.3]),
            Curve(label="chance", xs=[0, 3000], ys=[2.6, 2.6], rank=None, is_null=True),
        ],
        x_label="steps",
        y_label="loss in nats",
        whole_x=True,
        null=2.0,
    ),
    "log": Curves(
        title="Over tokens",
        description="Down.",
        curves=[Curve(label="", xs=[1e6, 2e7, 3e9], ys=[3.0, 2.5, 2.0], rank=0.5)],
        x_label="tokens",
        y_label="loss in nats",
        log_x=True,
        whole_x=True,
        from_zero=True,
    ),
    "bars": Bars(
        title="By width",
        description="More.",
        labels=["16", "32", "64", "128"],
        values=[0.2, -0.1, None, 0.4],
        lows=[0.1, None, None, 0.3],
        highs=[0.3, None, None, 0.5],
        nulls=[0.25, 0.25, None, 0.25],
        ranks=[0.0, 0.3, 0.6, 1.0],
        x_label="hidden units",
        y_label="share of the tokens",
    ),
    "one bar": Bars(title="One", description="1.", labels=["64"], values=[1.0], x_label="units", y_label="share"),
    "river": River(
        title="Share of the work",
        description="Three bands.",
        xs=[0, 100, 200, 300],
        bands=[RiverBand(label=f"{16 << i}", ys=[1.0, 1.5 + i, 1.2, 0.8], rank=i / 2) for i in range(3)],
        x_label="steps",
        y_label="experts per token",
    ),
    "map": _make_map(4, 8, null=0.25),
    "large map": _make_map(128, 64),
    "tree": dataclasses.replace(_make_map(4, 4, "Tree"), linkage=[(0, 1, 0.2), (2, 3, 0.4), (4, 5, 0.9)]),
    "points": Points(
        title="Against what tokens are like",
        description="One.",
        labels=["frequency", "nll", "bytes"],
        values=[-0.4, None, 0.2],
        lows=[-0.5, None, None],
        highs=[-0.3, None, None],
        null_lows=[-0.1, None, -0.1],
        null_highs=[0.1, None, 0.1],
        null=0.0,
        ranks=[0.0, 0.5, 1.0],
        x_label="rank correlation",
    ),
    "panels": Panels(
        title="Layers", description="Four.", maps=[_make_map(8, 8, f"layer {i}") for i in range(4)]
    ),
}  # fmt: skip
