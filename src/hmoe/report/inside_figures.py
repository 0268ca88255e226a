"""Parts of the page on what was found inside a model, one for each question."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hmoe.figures.inspection_charts import (
    chart_activation,
    chart_pairs,
    chart_points,
    chart_widths,
    chart_work,
    chart_worth,
    choose_layers,
)
from hmoe.figures.inspection_kinds import FEWEST_PAIRS, add_pair_counts, chart_profiles
from hmoe.figures.inspection_overview import (
    chart_layers,
    chart_pooled_similarity,
    chart_redundancy,
    chart_sizes,
    describe_size_test,
)
from hmoe.figures.records import Chart
from hmoe.report.expensive import describe_difficulty
from hmoe.report.gallery import show_chances
from hmoe.report.headline import show_signed
from hmoe.report.inspection_tables import Tables, fold_table, get_overall, list_figures, show_interval
from hmoe.report.likings import list_kind_likings, list_token_likings, name_strongest_likings
from hmoe.report.pieces import PagePart, make_table


def draw_insides(name: str, tables: Tables, most_layers: int) -> Iterator[PagePart]:
    """Yield the parts for which there are rows; of so many layers charts of their own."""
    if tables.get("experts"):
        yield _describe_activation(name, tables)
    if tables.get("difficulty_curves") or tables.get("difficulty"):
        yield describe_difficulty(name, tables)
    if tables.get("profiles"):
        yield _describe_kinds(name, tables, most_layers)
    if tables.get("similarity"):
        yield _describe_similarity(name, tables, most_layers)
    if tables.get("worth"):
        yield _describe_worth(name, tables, most_layers)
    if tables.get("tasks"):
        yield _describe_tasks(name, tables)


def _describe_activation(name: str, tables: Tables) -> PagePart:
    sentences = [
        "On this text a token activated "
        f"{row['activated_ratio']:.1%}{show_interval(row, 'low', 'high', '.1%')} of the hidden units "
        f"of a MoE layer; routing without preference activates {row['null']:.1%}."
        for row in get_overall(tables.get("layers", []))
    ]
    widths = sorted(tables.get("widths", []), key=lambda row: row["width"])
    if len(widths) > 1:
        sentences += [
            _describe_width(word, row) for word, row in (("narrowest", widths[0]), ("widest", widths[-1]))
        ]
    sentences += _list_idle(tables["experts"])
    charts: list[Chart] = [chart_activation(tables["experts"])]
    if widths:
        charts = [chart_widths(widths), chart_work(widths), *charts]
    if tables.get("layers"):
        charts.append(chart_layers(tables["layers"]))
    folded = [
        *fold_table(name, "widths", "By width", tables),
        *fold_table(name, "layers", "By layer", tables),
        *fold_table(name, "experts", "Each expert of each layer", tables),
    ]
    return PagePart("Who works: narrow experts or wide ones", sentences, list_figures(charts), folded)


def _describe_width(word: str, row: Mapping[str, Any]) -> str:
    """Return what experts of a width get of the pairs and of the work, each beside what chance would give."""
    parts = [
        f"{row[key]:.1%} of the {noun}{show_chances(row, key)}"
        for key, noun in (("token_share", "token-expert pairs"), ("compute_share", "work"))
        if row[key] is not None
    ]
    experts = "expert" if row["num_experts"] == 1 else f"{row['num_experts']} experts"
    return f"The {word} {experts}, of {row['width']:,} units, took {' and '.join(parts) or 'nothing'}."


def _list_idle(experts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield which experts had nothing to do, and of which the text was too short to say so."""
    for opening, states in (
        ("Idle experts", ("dead", "rare")),
        ("Not seen, on too little text to call them dead", ("unseen",)),
    ):
        named = [
            f"{row['width']} units in layer {row['layer']}"
            + (f" ({row['state']})" if len(states) > 1 else "")
            for row in experts
            if row.get("state") in states
        ]
        more = f" and {len(named) - 6} more" if len(named) > 6 else ""
        if named:
            yield f"{opening}: {', '.join(named[:6])}{more}."
    known = [row for row in experts if row.get("ratio") is not None]
    if known and all(row.get("state") == "" for row in experts):
        least = min(known, key=lambda row: row["ratio"])
        yield (
            f"No expert of any layer is dead or idle: the least used, {least['width']} units in layer "
            f"{least['layer']}, served {least['ratio']:.1%} of the tokens{show_chances(least, 'ratio')}."
        )


def _describe_kinds(name: str, tables: Tables, most_layers: int) -> PagePart:
    profiles = add_pair_counts(tables["profiles"], tables.get("experts", []))
    profiles = [row for row in profiles if row["label"] != "domain"]
    charts: list[Chart | None] = [
        chart_profiles(profiles, layer) for layer in choose_layers(profiles, most_layers)
    ]
    sentences = _weigh_labels(get_overall(tables.get("specialisation", [])))
    folded = [
        *fold_table(name, "specialisation", "Bits that experts tell of labels, by layer", tables),
        *fold_table(name, "profiles", "Shares and lifts of kinds of tokens", tables),
    ]
    kinds = list_kind_likings(name, profiles)
    sentences += [name_strongest_likings(table) for table in kinds]
    sentences.append(
        f"In the pictures an area has a colour where its 95% interval leaves out chance and it rests on {FEWEST_PAIRS} "
        "pairs or more; kinds that all experts have as often as chance are left out. The folded table has every "
        "interval and count."
    )
    likings = [*kinds, *list_token_likings(name, tables.get("top_tokens", []))]
    title = "Who reads what: kinds of tokens, marks, names"
    return PagePart(title, sentences, list_figures(charts), [*likings, *folded])


def _weigh_labels(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what it tells of a token which expert serves it, over all layers."""
    # Of a single class, such as one domain, nothing can be told, and there is no chance beside it.
    rows = [row for row in rows if row["bits"] is not None and row["null_high"] is not None]
    sure = [row for row in rows if row["p"] is not None and row["p"] < 0.05]
    shown, other = (
        [
            f"{str(row['label']).replace('_', ' ')} ({row['bits']:.4f} bits; chance {_show_chance(row['null_high'])})"
            for row in rows
            if (row in sure) == is_sure
        ]
        for is_sure in (True, False)
    )
    sentences = [f"Which expert serves a token tells something of its {', '.join(shown)}."] if shown else []
    return sentences + ([f"It is not shown to tell anything of its {', '.join(other)}."] if other else [])


def _show_chance(high: float | None) -> str:
    if high is None:
        return "unknown"
    return f"up to {high:.4f}" if high >= 0.0001 else "under 0.0001"


def _describe_similarity(name: str, tables: Tables, most_layers: int) -> PagePart:
    rows = tables["similarity"]
    merges = [row for row in tables.get("clusters", []) if row["distance"] == "rank"]
    layers = [
        chart_pairs(rows, layer, "rank", "distance of what experts read", merges)
        for layer in choose_layers(rows, most_layers)
    ]
    charts = [
        chart_sizes(rows, tables.get("size_tests", [])),
        chart_redundancy(tables.get("redundancy", []), 12),
        chart_pooled_similarity(rows, merges),
        *layers,
    ]
    sentences = [
        "Wasserstein distance between the tokens of two experts, over frequency ranks; "
        "the tree joins those that read alike."
    ]
    sized = describe_size_test(tables.get("size_tests", []))
    sentences += [sized] if sized else []
    sentences += _describe_twins(tables.get("redundancy", []))
    folded = [
        *fold_table(name, "similarity", "Distances of all pairs, with what chance gives", tables),
        *fold_table(name, "redundancy", "Outputs and weights of all pairs", tables),
        *fold_table(name, "size_tests", "Tests of near in size, near in behaviour", tables),
    ]
    return PagePart("Who is like whom", sentences, list_figures(charts), folded)


def _describe_twins(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield which experts compute nearly the same, by which rule, and on how many tokens."""
    if not rows:
        return
    twins = [row for row in rows if row.get("is_redundant")]
    named = ", ".join(
        f"{row['width_a']} and {row['width_b']} units in layer {row['layer']}" for row in twins[:6]
    )
    tokens = max((row.get("tokens") or 0 for row in rows), default=0)
    sample = f" for the same {tokens:,} tokens, whoever was chosen" if tokens else " for the same tokens"
    rule = (
        "cosine above 0.9, or CKA above 0.9 with matched weights more than half way from those of random experts to "
        "equal ones"
    )
    verdict = f"Pairs that do nearly the same: {named}" if twins else "No two are found to do nearly the same"
    yield f"Another question is what experts compute{sample}. {verdict} ({rule})."


def _describe_worth(name: str, tables: Tables, most_layers: int) -> PagePart:
    rows = [row for row in tables["worth"] if row["difference"] is not None]
    charts = [chart_worth(rows, layer) for layer in choose_layers(rows, most_layers)]
    sentence = "How much more loss a token has when one expert is switched off, and its gate shared among the others."
    return PagePart(
        "What each is worth",
        [sentence, *_weigh_worth(rows)],
        list_figures(charts),
        fold_table(name, "worth", "Loss without each expert", tables),
    )


def _weigh_worth(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield of how many experts the worth is shown, and what the pictures do not tell of intervals and axes."""
    tested = [row for row in rows if row["p"] is not None]
    shown = [row for row in tested if row["p"] <= 0.05 and row["difference"] > 0]
    if tested:
        yield (
            f"Shown to be worth something: {len(shown)} of {len(tested)} experts (p of the table at most 0.05, Holm's "
            "over all experts of all layers). Of the others nothing is shown, neither that they are worth something "
            "nor that they are worth nothing. "
            "Intervals are of each expert alone: some leave out 0 where p is above 0.05."
        )
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    tops = [
        f"{max(row['difference'] for row in rows if row['layer'] == layer):.3g} in layer {layer}"
        for layer in layers
    ]
    if len(layers) > 1:
        yield f"Each picture has a scale of its own; its highest bar: {', '.join(tops)}."


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
    return PagePart("Which tasks are expensive", sentences, list_figures([chart]), [tasks])
