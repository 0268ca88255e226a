"""Charts of the tables that an inspection has: rows in, plain records out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hmoe.figures.records import Bars, Curve, Curves, HeatMap, Points

Rows = Sequence[Mapping[str, Any]]
FEWEST_TOKENS = 20  # of a point on a line
FEATURES = {  # of tokens, and their names for people
    "frequency": "how often the token occurs",
    "nll": "the model's own loss in nats",
    "bytes": "length of the token in bytes",
    "senses": "number of senses",
    "word_position": "position in the word",
}


def choose_layers(rows: Rows, most: int) -> list[int]:
    """Return the MoE layers that are drawn, at least two: all, or some from the first to the last."""
    layers = sorted({row["layer"] for row in rows if row["layer"] is not None})
    return (
        layers
        if len(layers) <= most
        else [layers[round(place * (len(layers) - 1) / (most - 1))] for place in range(most)]
    )


def order_experts(rows: Rows) -> list[tuple[int, int]]:
    """Return (expert, width) of all experts, narrow to wide."""
    return sorted({(row["expert"], row["width"]) for row in rows}, key=lambda pair: (pair[1], pair[0]))


def name_experts(experts: Sequence[tuple[int, int]]) -> list[str]:
    """Return the names of experts on an axis: their widths, and their numbers where widths are equal."""
    widths = [width for _, width in experts]
    return [str(width) if widths.count(width) == 1 else f"{width} #{expert}" for expert, width in experts]


def chart_activation(rows: Rows) -> HeatMap:
    """Return how often each expert served a token, by layer."""
    experts = order_experts(rows)
    layers = sorted({row["layer"] for row in rows})
    cells = {(row["layer"], row["expert"]): row["ratio"] for row in rows}
    nulls = {round(row["ratio_null"], 9) for row in rows if row["ratio_null"] is not None}
    known = sorted((row for row in rows if row["ratio"] is not None), key=lambda row: row["ratio"])
    ends = [
        f"{word}: {row['ratio']:.1%}, {row['width']} units in layer {row['layer']}"
        for word, row in zip(("Most", "least"), (*known[-1:], *known[:1]), strict=False)
    ]
    return HeatMap(
        title="Share of the tokens that an expert served",
        description=f"{'; '.join(ends) or 'No expert has a share'}.",
        row_labels=[str(layer) for layer in layers],
        column_labels=name_experts(experts),
        values=[[cells.get((layer, expert)) for expert, _ in experts] for layer in layers],
        row_title="MoE layer",
        column_title="hidden units of the expert",
        value_label="share of the tokens",
        null=nulls.pop() if len(nulls) == 1 else None,
    )


def chart_widths(rows: Rows) -> Bars:
    """Return how often experts of each width served a token."""
    rows = sorted(rows, key=lambda row: row["width"])
    last = max(len(rows) - 1, 1)
    known = [row for row in rows if row["ratio"] is not None]
    ends = [f"{row['ratio']:.1%} of the tokens at {row['width']} units" for row in known]
    return Bars(
        title="By width, mean over layers",
        description=f"Experts served {' and '.join(dict.fromkeys((ends[0], ends[-1])))}."
        if ends
        else "No width has a share.",
        labels=[str(row["width"]) for row in rows],
        values=[row["ratio"] for row in rows],
        lows=[row["ratio_low"] for row in rows],
        highs=[row["ratio_high"] for row in rows],
        nulls=[row["ratio_null"] for row in rows],
        ranks=[place / last for place in range(len(rows))],
        x_label="hidden units of the expert",
        y_label="share of the tokens",
    )


def chart_work(rows: Rows) -> Bars:
    """Return which share of the work experts of each width did, beside what they would do without preference."""
    rows = sorted(rows, key=lambda row: row["width"])
    last = max(len(rows) - 1, 1)
    known = [row for row in rows if row["compute_share"] is not None]
    ends = [f"{row['compute_share']:.1%} of the work at {row['width']} units" for row in known]
    columns = {
        name: [row.get(f"compute_share_{end}") for row in rows]
        for name, end in (("lows", "low"), ("highs", "high"), ("nulls", "null"))
    }
    return Bars(
        title="Share of the work by width",
        description=f"{' and '.join(dict.fromkeys((ends[0], ends[-1])))}."
        if ends
        else "No width did any work.",
        labels=[str(row["width"]) for row in rows],
        values=[row["compute_share"] for row in rows],
        **columns,
        ranks=[place / last for place in range(len(rows))],
        x_label="hidden units of the expert",
        y_label="share of pairs x hidden units",
    )


def chart_pairs(rows: Rows, layer: int | None, value: str, words: str, linkage: Rows = ()) -> HeatMap:
    """Return a value of each pair of experts of a layer, None: all layers pooled, in the order of its tree."""
    own = [row for row in rows if row["layer"] == layer]
    pairs = {(row["expert_a"], row["width_a"]) for row in own} | {
        (row["expert_b"], row["width_b"]) for row in own
    }
    experts = sorted(pairs, key=lambda pair: (pair[1], pair[0]))
    cells = {frozenset((row["expert_a"], row["expert_b"])): row[value] for row in own}
    known = [row for row in own if row[value] is not None]
    merges = sorted((row for row in linkage if row["layer"] == layer), key=lambda row: row["step"])
    tree = [(row["left"], row["right"], row["height"]) for row in merges]
    tree = tree if len(merges) == len(experts) - 1 else []
    names = name_experts(experts)
    if tree:
        order = order_leaves(tree, len(experts))
        experts, names = [experts[leaf] for leaf in order], [names[leaf] for leaf in order]
        places = {leaf: place for place, leaf in enumerate(order)}
        tree = [(places.get(left, left), places.get(right, right), height) for left, right, height in tree]
    limits = [row[value] for row in rows if row[value] is not None and row["layer"] is not None]
    if layer is None:
        limits = [row[value] for row in known]
    return HeatMap(
        title=f"{'All layers pooled (opposite ones cancel)' if layer is None else f'Layer {layer}'}: {words}",
        description=_describe_pairs(known, value),
        row_labels=names,
        column_labels=names,
        values=[[None if a == b else cells.get(frozenset((a, b))) for b, _ in experts] for a, _ in experts],
        row_title="hidden units",
        column_title="hidden units",
        value_label=words,
        limits=(min(limits), max(limits)) if limits and min(limits) < max(limits) else None,
        linkage=tree,
    )


def order_leaves(linkage: Sequence[tuple[int, int, float]], num_leaves: int) -> list[int]:
    """Return the leaves of a tree from left to right, as scipy's dendrogram has them: no branches cross."""
    leaves = [[leaf] for leaf in range(num_leaves)]
    for left, right, _ in linkage:
        leaves.append([*leaves[left], *leaves[right]])
    return leaves[-1]


def _describe_pairs(rows: Rows, value: str) -> str:
    if not rows:
        return "No pair of experts can be compared."
    least, most = (choose(rows, key=lambda row: row[value]) for choose in (min, max))
    return (
        f"Least {least[value]:.3g} between {least['width_a']} and {least['width_b']} units, "
        f"most {most[value]:.3g} between {most['width_a']} and {most['width_b']}."
    )


def chart_difficulty(rows: Rows, feature: str, words: str) -> Curves | None:
    """Return the activated share of the units against a feature of tokens; None with less than two points."""
    known = [row for row in rows if row["x"] is not None and row["activated_ratio"] is not None]
    # A handful of tokens at the end of a line would look as sure as thousands.
    known = [row for row in known if row.get("count") is None or row["count"] >= FEWEST_TOKENS]
    own = sorted((row for row in known if row["feature"] == feature), key=lambda row: row["x"])
    if len(own) < 2:
        return None
    first, last = own[0], own[-1]
    is_log = feature == "frequency" and first["x"] > 0
    curve = Curve(
        label="",
        xs=[row["x"] for row in own],
        ys=[100 * row["activated_ratio"] for row in own],
        lows=[None if row["low"] is None else 100 * row["low"] for row in own],
        highs=[None if row["high"] is None else 100 * row["high"] for row in own],
        rank=None,
    )
    return Curves(
        title=f"Against {words}",
        description=f"Tokens in groups of {FEWEST_TOKENS} or more: {first['activated_ratio']:.2%} of the units at "
        f"{first['x']:,.3g}, {last['activated_ratio']:.2%} at {last['x']:,.0f}. The band is the 95% interval.",
        curves=[curve],
        x_label=words,
        log_x=is_log,
        y_label="activated units in %",
    )


def chart_points(
    rows: Rows, title: str, name: Callable[[Mapping[str, Any]], str], value: str, label: str
) -> Points:
    """Return a value with its interval and, where there is one, what chance gives, a line for each row."""
    has_null = all(row.get("null_high") is not None for row in rows)
    shown = "; ".join(f"{name(row)} {row[value]:.3g}" for row in rows if row[value] is not None)
    return Points(
        title=title,
        description=f"{shown or 'Nothing is known'}.",
        labels=[name(row) for row in rows],
        values=[row[value] for row in rows],
        lows=[row["low"] for row in rows],
        highs=[row["high"] for row in rows],
        null_lows=[row.get("null_low", 0.0) or 0.0 for row in rows] if has_null else (),
        null_highs=[row["null_high"] for row in rows] if has_null else (),
        x_label=label,
    )


def chart_worth(rows: Rows, layer: int) -> Bars:
    """Return what the loss gains without each expert of a layer."""
    own = [row for row in rows if row["layer"] == layer]
    own.sort(key=lambda row: (row["width"], row["expert"]))
    last = max(len(own) - 1, 1)
    known = [row for row in own if row["difference"] is not None]
    most = max(known, key=lambda row: row["difference"], default=None)
    return Bars(
        title=f"Layer {layer}: loss without an expert",
        description="No expert's loss is known."
        if most is None
        else f"Most is lost without the one of {most['width']} units: {most['difference']:+.4f} nats per token.",
        labels=name_experts([(row["expert"], row["width"]) for row in own]),
        values=[row["difference"] for row in own],
        lows=[row["low"] for row in own],
        highs=[row["high"] for row in own],
        ranks=[place / last for place in range(len(own))],
        x_label="hidden units of the expert",
        y_label="nats per token",
    )


def chart_compute(rows: Rows) -> HeatMap:
    """Return which share of a layer's work each expert does, by layer."""
    experts = order_experts(rows)
    layers = sorted({row["layer"] for row in rows})
    cells = {(row["layer"], row["expert"]): row["compute_share"] for row in rows}
    known = [row for row in rows if row["compute_share"] is not None]
    most = max(known, key=lambda row: row["compute_share"], default=None)
    return HeatMap(
        title="Share of a layer's work that an expert did",
        description="No expert did any work."
        if most is None
        else f"Most: {most['compute_share']:.1%}, {most['width']} units in layer {most['layer']}.",
        row_labels=[str(layer) for layer in layers],
        column_labels=name_experts(experts),
        values=[[cells.get((layer, expert)) for expert, _ in experts] for layer in layers],
        row_title="MoE layer",
        column_title="hidden units of the expert",
        value_label="share of pairs x hidden units",
    )


def chart_experts_per_token(rows: Rows) -> Bars:
    """Return by how many experts tokens were served, all layers together."""
    counts: dict[int, int] = {}
    for row in rows:
        counts[row["experts"]] = counts.get(row["experts"], 0) + row["tokens"]
    total = max(sum(counts.values()), 1)
    most = max(counts, key=lambda experts: counts[experts])
    return Bars(
        title="Experts per token and layer",
        description=f"Most often {most}, for {counts[most] / total:.1%} of the tokens.",
        labels=[str(experts) for experts in sorted(counts)],
        values=[counts[experts] / total for experts in sorted(counts)],
        x_label="experts",
        y_label="share of tokens x layers",
    )


def chart_labels(rows: Rows) -> Points:
    """Return how many bits an expert tells of each label of its tokens, mean over layers."""
    own = [row for row in rows if row["layer"] is None and row["bits"] is not None]
    return Points(
        title="What an expert tells of its tokens",
        description="; ".join(f"{row['label']} {row['bits']:.4f} bits" for row in own) + ".",
        labels=[str(row["label"]) for row in own],
        values=[row["bits"] for row in own],
        lows=[row["low"] for row in own],
        highs=[row["high"] for row in own],
        null_lows=[0.0] * len(own),
        null_highs=[row["null_high"] or 0.0 for row in own],
        x_label="bits per pair, mean over layers",
    )
