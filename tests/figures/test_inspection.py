import copy
from pathlib import Path
from typing import Any

import pytest

from hmoe.analyze.documents import encode_documents
from hmoe.analyze.inspection import InspectedText, InspectionOptions, inspect_text
from hmoe.figures.charts import render_chart
from hmoe.figures.inspection import list_charts, write_figures
from hmoe.figures.inspection_charts import choose_layers, name_experts
from hmoe.figures.inspection_kinds import is_liked_surely
from hmoe.figures.records import Bars, Curves, HeatMap, Panels, Points
from tests.analyze.helpers import open_small_model
from tests.conftest import sentences

Tables = dict[str, list[dict[str, Any]]]
BY_LAYER = ("similarity", "kinds", "worth")
UNKNOWN = {  # columns that may have no number in any row
    "experts": ("ratio", "ratio_low", "ratio_high", "ratio_null", "compute_share"),
    "widths": ("ratio", "ratio_low", "ratio_high", "ratio_null", "compute_share", "compute_share_null"),
    "layers": ("activated_ratio", "low", "high", "null"),
    "domains": ("activated_ratio", "low", "high", "null"),
    "similarity": ("rank",),
    "redundancy": ("cka",),
    "difficulty": ("correlation", "low", "high", "null_low", "null_high"),
    "difficulty_curves": ("activated_ratio", "low", "high"),
    "profiles": ("lift", "low", "high"),
    "worth": ("difference", "low", "high"),
    "specialisation": ("bits", "low", "high", "null_high"),
}


def look(**moe: Any) -> Tables:
    documents = [(f"domain {i % 2}", sentences(i, 4) + f" {i} {i * 7}.") for i in range(8)]
    opened = open_small_model(**moe)
    text = InspectedText("texts", encode_documents(documents, opened.tokenizer), {"name": "texts"})
    tables: Tables = inspect_text(opened, text, InspectionOptions(32, sample_tokens=96)).record["tables"]
    return tables


@pytest.fixture(scope="module")
def tables() -> Tables:
    return look()


def test_all_tables_have_charts(tables: Tables) -> None:
    names = set(list_charts(tables))
    assert {f"{name}-layer{layer}" for name in BY_LAYER for layer in (0, 1)} <= names
    assert {"activation", "compute", "widths", "experts-per-token", "difficulty", "specialisation"} <= names
    assert {"difficulty-frequency", "difficulty-nll", "work", "layers", "domains"} <= names
    assert {"sizes", "similarity", "redundancy"} <= names
    assert "tasks" not in names


def test_without_rows_there_is_no_chart(tables: Tables) -> None:
    assert list_charts({}) == {}
    assert list_charts({name: [] for name in tables}) == {}
    assert set(list_charts({"worth": tables["worth"]})) == {"worth-layer0", "worth-layer1"}


def test_tables_by_expert_and_width_are_drawn_as_they_are(tables: Tables) -> None:
    charts = list_charts(tables)
    experts = [(2, 4), (0, 5), (3, 7), (1, 9)]  # narrow to wide
    for name, column in (("activation", "ratio"), ("compute", "compute_share")):
        cells = {(row["layer"], row["expert"]): row[column] for row in tables["experts"]}
        chart = charts[name]
        assert isinstance(chart, HeatMap)
        assert chart.column_labels == ["4", "5", "7", "9"]
        assert chart.values == [[cells[layer, expert] for expert, _ in experts] for layer in (0, 1)]
    chart = charts["widths"]
    assert isinstance(chart, Bars)
    rows = sorted(tables["widths"], key=lambda row: row["width"])
    assert chart.values == [row["ratio"] for row in rows]
    assert (chart.lows, chart.highs) == (
        [row["ratio_low"] for row in rows],
        [row["ratio_high"] for row in rows],
    )
    chart = charts["worth-layer1"]
    assert isinstance(chart, Bars)
    worth = {row["expert"]: row for row in tables["worth"] if row["layer"] == 1}
    assert chart.values == [worth[expert]["difference"] for expert, _ in experts]
    assert chart.highs == [worth[expert]["high"] for expert, _ in experts]
    chart = charts["experts-per-token"]
    assert isinstance(chart, Bars)
    total = sum(row["tokens"] for row in tables["experts_per_token"])
    for label, value in zip(chart.labels, chart.values, strict=True):
        own = [row["tokens"] for row in tables["experts_per_token"] if str(row["experts"]) == label]
        assert value == sum(own) / total


def test_pairs_are_drawn_on_both_sides(tables: Tables) -> None:
    charts, widths = list_charts(tables), {0: "5", 1: "9", 2: "4", 3: "7"}
    panels = charts["redundancy"]
    assert isinstance(panels, Panels)
    assert [panel.title for panel in panels.maps] == ["layer 0", "layer 1"]
    for chart, table, column in (
        (charts["similarity-layer1"], "similarity", "rank"),
        (panels.maps[1], "redundancy", "cka"),
    ):
        assert isinstance(chart, HeatMap)
        for row in tables[table]:
            if row["layer"] == 1:
                a, b = (chart.row_labels.index(widths[row[name]]) for name in ("expert_a", "expert_b"))
                assert chart.values[a][b] == chart.values[b][a] == row[column]
        assert [chart.values[i][i] for i in range(4)] == [None] * 4
    chart = charts["similarity-layer0"]
    assert isinstance(chart, HeatMap)
    merges = [row for row in tables["clusters"] if row["layer"] == 0 and row["distance"] == "rank"]
    assert [height for _, _, height in chart.linkage] == [row["height"] for row in merges]
    # In the order of the tree every branch joins neighbours.
    spans = [{place} for place in range(4)]
    for left, right, _ in chart.linkage:
        assert max(spans[left]) + 1 == min(spans[right])
        spans.append(spans[left] | spans[right])
    assert len(merges) == 3


def test_kinds_and_difficulty_are_drawn_as_they_are(tables: Tables) -> None:
    charts = list_charts(tables)
    chart = charts["kinds-layer0"]
    assert isinstance(chart, HeatMap)
    drawn = {
        (row, column): value
        for row, values in zip(chart.row_labels, chart.values, strict=True)
        for column, value in zip(chart.column_labels, values, strict=True)
    }
    rows = [row for row in tables["profiles"] if row["layer"] == 0 and row["label"] != "domain"]
    names = [row["class"] for row in rows if row["expert"] == 0]
    unique = [
        row for row in rows if names.count(row["class"]) == 1
    ]  # two labels may have a class of one name
    assert unique
    shown = {name for name, _ in drawn}
    assert shown
    assert all(
        drawn[row["class"], str(row["width"])] == row["lift"] for row in unique if row["class"] in shown
    )
    assert all(
        row["lift"] is None or 0.95 < row["lift"] < 1.05 for row in unique if row["class"] not in shown
    )
    chart = charts["difficulty-nll"]
    assert isinstance(chart, Curves)
    rows = sorted((r for r in tables["difficulty_curves"] if r["feature"] == "nll"), key=lambda row: row["x"])
    assert chart.curves[0].ys == [100 * row["activated_ratio"] for row in rows]
    assert chart.curves[0].xs == [row["x"] for row in rows]
    for name, column in (("difficulty", "correlation"), ("specialisation", "bits")):
        chart = charts[name]
        assert isinstance(chart, Points)
        rows = [r for r in tables[name] if r["layer"] is None and r[column] is not None]
        assert sorted(chart.values) == sorted(row[column] for row in rows)


@pytest.mark.parametrize("table", UNKNOWN)
def test_columns_without_numbers_are_borne(tables: Tables, table: str) -> None:
    rows = copy.deepcopy(tables[table])
    for row in rows:
        row.update(dict.fromkeys(UNKNOWN[table], None))
    for chart in list_charts({table: rows}).values():
        assert "None" not in chart.description + chart.title
        render_chart(chart)
    if table in ("difficulty", "difficulty_curves", "profiles", "worth", "specialisation"):
        assert list_charts({table: rows}) == {}


def test_layers_domains_and_work_stand_beside_their_nulls(tables: Tables) -> None:
    charts = list_charts(tables)
    rows = [row for row in tables["layers"] if row["layer"] is not None]
    chart = charts["layers"]
    assert isinstance(chart, Points)
    assert chart.labels == ["layer 0", "layer 1"]
    assert chart.values == [100 * row["activated_ratio"] for row in rows]
    assert chart.nulls == [100 * row["null"] for row in rows]
    assert b"random routing" in render_chart(chart)
    chart = charts["domains"]
    assert isinstance(chart, Points)
    assert sorted(chart.labels) == ["domain 0", "domain 1"]
    assert list(chart.values) == sorted(chart.values, reverse=True)
    older = [{key: value for key, value in row.items() if key != "null"} for row in tables["domains"]]
    assert "random" not in list_charts({"domains": older})["domains"].description
    widths = sorted(tables["widths"], key=lambda row: row["width"])
    for name, column in (("work", "compute_share"), ("widths", "ratio")):
        chart = charts[name]
        assert isinstance(chart, Bars)
        assert chart.values == [row[column] for row in widths]
        assert chart.nulls == [row[f"{column}_null"] for row in widths]
        assert chart.lows == [row[f"{column}_low"] for row in widths]
    older = [{key: row[key] for key in row if not key.startswith("compute_share_")} for row in widths]
    assert b"random routing" not in render_chart(list_charts({"widths": older})["work"])


def test_sizes_are_drawn_against_what_is_read_with_the_verdict_of_the_test() -> None:
    rows: list[dict[str, Any]] = [
        {"layer": layer, "expert_a": a, "expert_b": a + 1, "width_a": 4, "width_b": 8 + a, "rank": 0.1 * a,
         "null_rank": 0.02}
        for layer in (0, 1) for a in range(3)
    ]  # fmt: skip
    tests = [{"layer": None, "distance": "rank", "correlation": 0.5, "p": 0.01}]
    chart = list_charts({"similarity": rows, "size_tests": tests})["sizes"]
    assert isinstance(chart, Curves)
    assert [curve.xs for curve in chart.curves] == [[2, 2.25, 2.5]] * 2
    assert [curve.ys for curve in chart.curves] == [[0, 0.1, 0.2]] * 2
    assert chart.null == pytest.approx(0.02)
    assert "near in size read alike: Mantel correlation +0.50, p 0.010, one-sided" in chart.description
    assert 'd="M' in render_chart(chart).decode()
    for worse in ({"p": 0.2}, {"correlation": -0.5}):
        chart = list_charts({"similarity": rows, "size_tests": [tests[0] | worse]})["sizes"]
        assert "not shown to read alike" in chart.description
    equal = [row | {"width_b": 4} for row in rows]
    assert "sizes" not in list_charts({"similarity": equal, "size_tests": tests})


def test_the_mean_over_layers_is_drawn_from_its_own_rows(tables: Tables) -> None:
    chart = list_charts(tables)["similarity"]
    assert isinstance(chart, HeatMap)
    row = next(row for row in tables["similarity"] if row["layer"] is None)
    widths = {0: "5", 1: "9", 2: "4", 3: "7"}
    a, b = (chart.row_labels.index(widths[row[name]]) for name in ("expert_a", "expert_b"))
    assert chart.title.startswith("All layers pooled (opposite ones cancel)")
    assert chart.values[a][b] == row["rank"]
    single = [row for row in tables["similarity"] if row["layer"] is not None]
    assert "similarity" not in list_charts({"similarity": single})


def test_tasks() -> None:
    rows: list[dict[str, Any]] = [
        {"task": "copy", "activated_ratio": 0.25, "low": 0.2, "high": 0.3},
        {"task": "<b>", "activated_ratio": None, "low": None, "high": None},
    ]
    chart = list_charts({"tasks": rows})["tasks"]
    assert isinstance(chart, Points)
    assert (chart.labels, chart.values) == (["copy", "<b>"], [0.25, None])
    assert chart.description == "copy 0.25."
    assert list_charts({"tasks": rows[1:]})["tasks"].description == "Nothing is known."


@pytest.mark.parametrize(
    "moe",
    [{"widths": [6], "router": {"name": "top_k", "k": 1}}, {"widths": [6, 6, 6, 6]}],
    ids=["one expert", "equal"],
)
def test_small_and_equal_models(moe: dict[str, Any]) -> None:
    charts = list_charts(look(**moe))
    assert "activation" in charts
    assert ("similarity-layer0" in charts) == (len(moe["widths"]) > 1)
    for name in set(charts) - {f"{name}-layer1" for name in BY_LAYER}:
        render_chart(charts[name])


def test_one_layer_and_a_dead_expert(tables: Tables) -> None:
    single: Tables = {
        name: [row for row in rows if row.get("layer", 0) in (0, None)] for name, rows in tables.items()
    }
    single = copy.deepcopy(single)
    single["similarity"] = [
        row | {"rank": None} if row["expert_a"] == 0 else row for row in single["similarity"]
    ]
    single["clusters"] = [row for row in single["clusters"] if row["step"] < 2]
    charts = list_charts(single)
    assert not any(name.endswith("layer1") for name in charts)
    chart = charts["similarity-layer0"]
    assert isinstance(chart, HeatMap)
    assert not chart.linkage  # its leaves are not all experts
    for name in ("activation", "similarity-layer0"):
        render_chart(charts[name])


def test_files(tables: Tables, tmp_path: Path) -> None:
    own = {"worth": tables["worth"], "widths": tables["widths"]}
    names = write_figures(own, tmp_path, ("svg", "png"))
    assert names == [
        f"{name}.{form}"
        for name in ("widths", "work", "worth-layer0", "worth-layer1")
        for form in ("svg", "png")
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert "prefers-color-scheme" in (tmp_path / "widths.svg").read_text()


def test_names_and_layers() -> None:
    assert name_experts([(0, 4), (1, 6), (2, 6)]) == ["4", "6 #1", "6 #2"]
    rows = [{"layer": layer} for layer in (None, *range(30))]
    assert choose_layers(rows, 4) == [0, 10, 19, 29]
    assert choose_layers(rows[:3], 4) == [0, 1]


@pytest.mark.parametrize(
    ("changes", "is_sure"),
    [
        ({}, True),
        ({"p": 0.06}, False),
        ({"p": None}, False),
        ({"lift_null": 1.5}, False),
        ({"low": 0.9}, False),
        ({"low": None}, False),
        ({"pairs": 49}, False),
    ],
)
def test_a_liking_is_sure_by_its_test_its_chance_and_its_pairs(
    changes: dict[str, Any], is_sure: bool
) -> None:
    row = {"lift": 1.6, "low": 1.4, "high": 1.8, "pairs": 50, "p": 0.04, "lift_null": 1.1, **changes}
    assert is_liked_surely(row) is is_sure
    older = {name: value for name, value in row.items() if name not in ("p", "lift_null", "pairs")}
    assert is_liked_surely(older) is (older["low"] is not None and older["low"] > 1)
