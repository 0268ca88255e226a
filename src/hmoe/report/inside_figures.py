"""Parts of the page on what was found inside a model, one for each question."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hmoe.figures.inspection_charts import (
    FEATURES,
    chart_activation,
    chart_difficulty,
    chart_pairs,
    chart_points,
    chart_profiles,
    chart_widths,
    chart_worth,
    choose_layers,
)
from hmoe.figures.records import Chart
from hmoe.report.headline import show_signed
from hmoe.report.pieces import PageFigure, PagePart, PageTable, make_table

Tables = Mapping[str, list[dict[str, Any]]]


def draw_insides(name: str, tables: Tables, most_layers: int) -> Iterator[PagePart]:
    """Yield the parts for which there are rows; of so many layers charts of their own."""
    if tables.get("experts"):
        yield _describe_activation(name, tables)
    if tables.get("difficulty_curves") or tables.get("difficulty"):
        yield _describe_difficulty(name, tables)
    if tables.get("profiles"):
        yield _describe_kinds(name, tables, most_layers)
    if tables.get("similarity"):
        yield _describe_similarity(name, tables, most_layers)
    if tables.get("worth"):
        yield _describe_worth(name, tables, most_layers)
    if tables.get("tasks"):
        yield _describe_tasks(name, tables)


def _fold(name: str, table: str, caption: str, tables: Tables, num_shown: int = 40) -> list[PageTable]:
    """Return a table of the inspection behind its caption; [] where it has no rows."""
    rows = tables.get(table, [])
    title = table.replace("_", "-")
    return [make_table(f"{title}-{name}", caption, rows, num_shown, is_folded=True)] if rows else []


def _figures(charts: Sequence[Chart | None]) -> list[PageFigure]:
    return [PageFigure(chart) for chart in charts if chart is not None]


def _get_overall(rows: Sequence[Mapping[str, Any]], **wanted: Any) -> list[Mapping[str, Any]]:
    """Return the rows over all layers that have these values."""
    return [
        row
        for row in rows
        if row["layer"] is None and all(row.get(key) == value for key, value in wanted.items())
    ]


def show_interval(row: Mapping[str, Any], low: str, high: str, form: str) -> str:
    """Return the interval of a number in brackets; "" where there is none."""
    if row.get(low) is None or row.get(high) is None:
        return ""
    return f" ({row[low]:{form}} to {row[high]:{form}})".replace("-", "\u2212")


def _describe_activation(name: str, tables: Tables) -> PagePart:
    sentences = [
        f"A token activated {row['activated_ratio']:.1%}{show_interval(row, 'low', 'high', '.1%')} of the hidden units "
        f"of a MoE layer; routing without preference activates {row['null']:.1%}."
        for row in _get_overall(tables.get("layers", []))
    ]
    idle = [row for row in tables["experts"] if row.get("state")]
    if idle:
        named = ", ".join(
            f"{row['width']} units in layer {row['layer']} ({row['state']})" for row in idle[:6]
        )
        more = f" and {len(idle) - 6} more" if len(idle) > 6 else ""
        sentences.append(f"Idle experts: {named}{more}.")
    charts: list[Chart] = [chart_activation(tables["experts"])]
    if tables.get("widths"):
        charts.insert(0, chart_widths(tables["widths"]))
    folded = [
        *_fold(name, "widths", "By width", tables),
        *_fold(name, "experts", "Each expert of each layer", tables),
        *_fold(name, "domains", "By domain of the text", tables),
    ]
    return PagePart("Who works", sentences, _figures(charts), folded)


def _describe_difficulty(name: str, tables: Tables) -> PagePart:
    curves = [
        chart_difficulty(tables.get("difficulty_curves", []), feature, words)
        for feature, words in FEATURES.items()
    ]
    rows = _get_overall(tables.get("difficulty", []), over="types", given=None)
    rows = [row for row in rows if row["correlation"] is not None]
    charts: list[Chart | None] = [*curves]
    if rows:
        charts.append(
            chart_points(rows, "Rank correlations over token types", lambda row: str(row["feature"]).replace("_", " "),
                         "correlation", "correlation with activated units")
        )  # fmt: skip
    sentences = [
        "Which text is expensive: the share of the hidden units that a token activates, mean over layers."
    ]
    sentences += [_weigh_correlation(row) for row in rows]
    tokens = _get_overall(tables.get("chosen_tokens", []))
    chosen = sorted(tokens, key=lambda row: row["activated_ratio"] or 0.0, reverse=True)
    shown = [{key: row[key] for key in ("text", "count", "activated_ratio", "nll")} for row in chosen]
    named = (
        [make_table(f"tokens-{name}", "Some tokens, from expensive to cheap.", _show_tokens(shown))]
        if shown
        else []
    )
    folded = _fold(
        name, "difficulty", "All correlations, by layer, with intervals and what chance gives", tables
    )
    return PagePart("What is expensive", sentences, _figures(charts), [*named, *folded])


def _show_tokens(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "text": row["text"].replace("\n", "⏎").replace(" ", "␣")} for row in rows]


def _weigh_correlation(row: Mapping[str, Any]) -> str:
    """Return a correlation in words, and whether it is more than chance gives."""
    value, words = row["correlation"], FEATURES.get(row["feature"], row["feature"])
    low, high = row.get("null_low"), row.get("null_high")
    interval = show_interval(row, "low", "high", "+.2f")
    told = f"{words[0].upper()}{words[1:]}: rank correlation {show_signed(value, 2)}{interval}"
    if low is None or high is None:
        return f"{told}."
    chance = show_interval(row, "null_low", "null_high", "+.2f")
    if low <= value <= high:
        return f"{told}, within what chance gives{chance}."
    return f"{told}, {'more' if value > 0 else 'less'} than chance gives{chance}."


def _describe_kinds(name: str, tables: Tables, most_layers: int) -> PagePart:
    profiles = [row for row in tables["profiles"] if row["label"] != "domain"]
    charts: list[Chart | None] = [
        chart_profiles(profiles, layer) for layer in choose_layers(profiles, most_layers)
    ]
    sentences = _weigh_labels(_get_overall(tables.get("specialisation", [])))
    folded = [
        *_fold(name, "specialisation", "Bits that experts tell of labels, by layer", tables),
        *_fold(name, "profiles", "Shares and lifts of kinds of tokens", tables),
    ]
    return PagePart("Who reads what kind", sentences, _figures(charts), folded)


def _weigh_labels(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what it tells of a token which expert serves it, over all layers."""
    sure = [row for row in rows if row["p"] is not None and row["p"] < 0.05]
    told, other = (
        [
            f"{str(row['label']).replace('_', ' ')} ({row['bits']:.4f} bits; chance {_show_chance(row['null_high'])})"
            for row in rows
            if (row in sure) == is_sure
        ]
        for is_sure in (True, False)
    )
    sentences = [f"Which expert serves a token tells something of its {', '.join(told)}."] if told else []
    return sentences + ([f"It is not shown to tell anything of its {', '.join(other)}."] if other else [])


def _show_chance(high: float | None) -> str:
    if high is None:
        return "unknown"
    return f"up to {high:.4f}" if high >= 0.0001 else "under 0.0001"


def _describe_similarity(name: str, tables: Tables, most_layers: int) -> PagePart:
    rows = tables["similarity"]
    merges = [row for row in tables.get("clusters", []) if row["distance"] == "rank"]
    charts: list[Chart | None] = [
        chart_pairs(rows, layer, "rank", "distance of what experts read", merges)
        for layer in choose_layers(rows, most_layers)
    ]
    sentences = [
        "Wasserstein distance between the tokens of two experts, over frequency ranks; "
        "the tree joins those that read alike."
    ]
    for row in _get_overall(tables.get("size_tests", []), distance="rank"):
        if row["correlation"] is None or row["p"] is None:
            continue
        told = "read alike" if row["p"] < 0.05 and row["correlation"] > 0 else "are not shown to read alike"
        sentences.append(
            f"Experts near in size {told}: Mantel correlation {show_signed(row['correlation'], 2)}, p {row['p']:.3f}."
        )
    twins = [row for row in tables.get("redundancy", []) if row.get("is_redundant")]
    if tables.get("redundancy"):
        named = ", ".join(
            f"{row['width_a']} and {row['width_b']} units in layer {row['layer']}" for row in twins[:6]
        )
        sentences.append(
            f"Pairs that do nearly the same: {named}." if twins else "No two experts do nearly the same."
        )
    folded = [
        *_fold(name, "similarity", "Distances of all pairs, with what chance gives", tables),
        *_fold(name, "redundancy", "Outputs and weights of all pairs", tables),
        *_fold(name, "size_tests", "Tests of near in size, near in behaviour", tables),
    ]
    return PagePart("Who is like whom", sentences, _figures(charts), folded)


def _describe_worth(name: str, tables: Tables, most_layers: int) -> PagePart:
    rows = [row for row in tables["worth"] if row["difference"] is not None]
    charts = [chart_worth(rows, layer) for layer in choose_layers(rows, most_layers)]
    sentence = "How much more loss a token has when one expert is switched off, and its gate shared among the others."
    return PagePart(
        "What each is worth",
        [sentence],
        _figures(charts),
        _fold(name, "worth", "Loss without each expert", tables),
    )


def _to_points(row: Mapping[str, Any]) -> dict[str, float | None]:
    return {key: None if row[key] is None else 100 * row[key] for key in ("low", "high")}


def _describe_tasks(name: str, tables: Tables) -> PagePart:
    rows = tables["tasks"]
    percents = [{**row, "activated_ratio": 100 * row["activated_ratio"], **_to_points(row)} for row in rows]
    chart = chart_points(percents, "Activated share by task", lambda row: str(row["task"]), "activated_ratio",
                         "activated units in %")  # fmt: skip
    sentences = [
        f"{row['task']} against {row['other']}: {show_signed(100 * row['difference'], 2)} points"
        f"{show_interval(_to_points(row), 'low', 'high', '+.2f')}."
        for row in tables.get("task_differences", [])
        if row["difference"] is not None
    ]
    tasks = make_table(f"tasks-{name}", "By task, with intervals over questions.", rows)
    return PagePart("Which tasks are expensive", sentences, _figures([chart]), [tasks])
