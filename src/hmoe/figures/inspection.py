"""All figures of an inspection: tables in, charts by name, and their files."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hmoe.figures.charts import render_chart
from hmoe.figures.inspection_charts import (
    FEATURES,
    Rows,
    chart_activation,
    chart_compute,
    chart_difficulty,
    chart_experts_per_token,
    chart_labels,
    chart_pairs,
    chart_points,
    chart_widths,
    chart_work,
    chart_worth,
    choose_layers,
)
from hmoe.figures.inspection_kinds import add_pair_counts, chart_profiles
from hmoe.figures.inspection_overview import (
    chart_correlations,
    chart_domains,
    chart_layers,
    chart_pooled_similarity,
    chart_redundancy,
    chart_sizes,
)
from hmoe.figures.records import Chart
from hmoe.storage import write_atomic

MOST_LAYERS = 12  # that have figures of their own; the tables have all

Tables = Mapping[str, Rows]


def list_charts(tables: Tables) -> dict[str, Chart]:
    """Return the charts for which there are rows, by the names of their files."""
    return dict(_iterate_charts({name: rows for name, rows in tables.items() if rows}))


def write_figures(tables: Tables, folder: Path, forms: Sequence[str]) -> list[str]:
    """Write every figure in these forms, and return the names of the files."""
    names = []
    for name, chart in list_charts(tables).items():
        for form in forms:
            write_atomic(folder / f"{name}.{form}", render_chart(chart, form, prefix=name, embedded=False))
            names.append(f"{name}.{form}")
    return names


def _iterate_charts(tables: Tables) -> Iterator[tuple[str, Chart]]:
    whole: dict[str, tuple[str, Callable[[Rows], Chart]]] = {
        "activation": ("experts", chart_activation),
        "compute": ("experts", chart_compute),
        "widths": ("widths", chart_widths),
        "work": ("widths", chart_work),
        "layers": ("layers", chart_layers),
        "domains": ("domains", chart_domains),
        "experts-per-token": ("experts_per_token", chart_experts_per_token),
    }
    for name, (table, draw) in whole.items():
        if table in tables:
            yield name, draw(tables[table])
    yield from _iterate_difficulty(tables)
    yield from _iterate_points(tables)
    yield from _iterate_pairs(tables)
    yield from _iterate_layers(tables)


def _iterate_pairs(tables: Tables) -> Iterator[tuple[str, Chart]]:
    """Yield charts of pairs of experts that show all layers together."""
    similarity, merges = tables.get("similarity", ()), _list_merges(tables)
    charts = {
        "similarity": chart_pooled_similarity(similarity, merges),
        "sizes": chart_sizes(similarity, tables.get("size_tests", ())),
        "redundancy": chart_redundancy(tables.get("redundancy", ()), MOST_LAYERS),
    }
    yield from ((name, chart) for name, chart in charts.items() if chart is not None)


def _list_merges(tables: Tables) -> Rows:
    return [row for row in tables.get("clusters", ()) if row["distance"] == "rank"]


def _iterate_difficulty(tables: Tables) -> Iterator[tuple[str, Chart]]:
    for feature, words in FEATURES.items():
        chart = chart_difficulty(tables.get("difficulty_curves", ()), feature, words)
        if chart is not None:
            yield f"difficulty-{feature.replace('_', '-')}", chart


def _iterate_points(tables: Tables) -> Iterator[tuple[str, Chart]]:
    """Yield charts of one number a line: over all layers, or by task."""
    rows = [
        row for row in tables.get("difficulty", ()) if row["layer"] is None and row["correlation"] is not None
    ]
    if rows:
        yield "difficulty", chart_correlations(rows)
    if any(row["layer"] is None and row["bits"] is not None for row in tables.get("specialisation", ())):
        yield "specialisation", chart_labels(tables["specialisation"])
    if "tasks" in tables:
        title = "Activated share of the units by task"
        yield "tasks", chart_points(tables["tasks"], title, _name_task, "activated_ratio", "activated units")


def _name_task(row: Mapping[str, Any]) -> str:
    return str(row["task"])


def _iterate_layers(tables: Tables) -> Iterator[tuple[str, Chart]]:
    """Yield charts of which each MoE layer has its own."""
    merges, similarity = _list_merges(tables), tables.get("similarity", ())
    for layer in choose_layers(similarity, MOST_LAYERS):
        words = "distance of what experts read"
        yield f"similarity-layer{layer}", chart_pairs(similarity, layer, "rank", words, merges)
    profiles = add_pair_counts(tables.get("profiles", ()), tables.get("experts", ()))
    profiles = [row for row in profiles if row["label"] != "domain"]
    for layer in choose_layers(profiles, MOST_LAYERS):
        chart = chart_profiles(profiles, layer)
        if chart is not None:
            yield f"kinds-layer{layer}", chart
    worth = [row for row in tables.get("worth", ()) if row["difference"] is not None]
    for layer in choose_layers(worth, MOST_LAYERS):
        yield f"worth-layer{layer}", chart_worth(worth, layer)
