"""Charts of an inspection that show all layers, domains or pairs of experts at a glance."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hmoe.figures.inspection_charts import Rows, chart_pairs, chart_points, choose_layers
from hmoe.figures.inspection_kinds import SURE
from hmoe.figures.records import Curve, Curves, HeatMap, Panels, Points


def chart_ratios(rows: Rows, title: str, name: Callable[[Mapping[str, Any]], str]) -> Points:
    """Return the activated share of the units, a line for each row, beside what random routing gives."""
    known = [row for row in rows if row["activated_ratio"] is not None]
    order = sorted(known, key=lambda row: row["activated_ratio"])
    ends = [f"{name(row)} {row['activated_ratio']:.2%}" for row in (*order[:1], *order[-1:])]
    return Points(
        title=title,
        description=f"{' to '.join(dict.fromkeys(ends)) or 'Nothing is known'}{_describe_nulls(known)}.",
        labels=[name(row) for row in rows],
        values=[_to_percent(row["activated_ratio"]) for row in rows],
        lows=[_to_percent(row["low"]) for row in rows],
        highs=[_to_percent(row["high"]) for row in rows],
        nulls=[_to_percent(row.get("null")) for row in rows],
        x_label="activated units in %",
    )


def _to_percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _describe_nulls(rows: Rows) -> str:
    nulls = [row["null"] for row in rows if row.get("null") is not None]
    ends = dict.fromkeys(f"{end:.2%}" for end in (min(nulls), max(nulls))) if nulls else {}
    return f"; random routing {' to '.join(ends)}" if ends else ""


def chart_layers(rows: Rows) -> Points:
    """Return which share of its units each MoE layer activates."""
    own = [row for row in rows if row["layer"] is not None]
    return chart_ratios(own, "Activated units by MoE layer", lambda row: f"layer {row['layer']}")


def chart_domains(rows: Rows) -> Points:
    """Return which share of the units each domain of the text activates, the expensive ones first."""
    order = sorted(rows, key=lambda row: -(row["activated_ratio"] or 0.0))
    return chart_ratios(order, "Activated units by domain of the text", lambda row: str(row["domain"]))


def chart_sizes(similarity: Rows, tests: Rows) -> Curves | None:
    """Return the distance of what two experts read against how far their widths are apart; None without pairs."""
    # Zero-computation experts have no width that another could be compared with.
    known = [
        row
        for row in similarity
        if row["layer"] is not None and row["rank"] is not None and min(row["width_a"], row["width_b"]) > 0
    ]
    layers = sorted({row["layer"] for row in known})
    if len({_compare_widths(row) for row in known}) < 2:
        return None
    curves = []
    for place, layer in enumerate(layers):
        own = sorted((row for row in known if row["layer"] == layer), key=_compare_widths)
        curves.append(
            Curve(
                label=f"layer {layer}" if len(layers) <= 6 else "",
                xs=[_compare_widths(row) for row in own],
                ys=[row["rank"] for row in own],
                rank=place / max(len(layers) - 1, 1),
                is_line=False,
            )
        )
    nulls = [row["null_rank"] for row in known if row.get("null_rank") is not None]
    return Curves(
        title="Near in size, near in what they read?",
        description=describe_size_test(tests) or "No test of it.",
        curves=curves,
        x_label="wider expert / narrower expert",
        y_label="distance of what they read",
        null=statistics.fmean(nulls) if nulls else None,
        from_zero=True,
    )


def _compare_widths(row: Mapping[str, Any]) -> float:
    narrow, wide = sorted((row["width_a"], row["width_b"]))
    return float(wide / narrow)


def describe_size_test(tests: Rows, distance: str = "rank") -> str:
    """Return what the test over all layers says of experts that are near in size; "" where there is none."""
    for row in tests:
        if (
            row["layer"] is None
            and row["distance"] == distance
            and None not in (row["correlation"], row["p"])
        ):
            is_shown = row["p"] <= SURE and row["correlation"] > 0
            verdict = "read alike" if is_shown else "are not shown to read alike"
            correlation = f"{row['correlation']:+.2f}".replace("-", "\u2212")
            return (
                f"Experts near in size {verdict}: Mantel correlation {correlation}, p {row['p']:.3f}, "
                "one-sided, the larger of its own and that of what lies beyond random routing."
            )
    return ""


def chart_pooled_similarity(similarity: Rows, merges: Rows) -> HeatMap | None:
    """Return the distances of what two experts read in all layers pooled; None where they were not taken."""
    own = [row for row in similarity if row["layer"] is None]
    return chart_pairs(own, None, "rank", "distance of what experts read", merges) if own else None


def chart_redundancy(rows: Rows, most_layers: int) -> Panels | None:
    """Return how alike the outputs of two experts are, a small map for each layer; None without a number."""
    layers = choose_layers([row for row in rows if row["cka"] is not None], most_layers)
    if not layers:
        return None
    twins = [row for row in rows if row.get("is_redundant")]
    named = [f"{row['width_a']} and {row['width_b']} units in layer {row['layer']}" for row in twins[:6]]
    known = [row for row in rows if row["cka"] is not None and row["layer"] is not None]
    most = max(known, key=lambda row: row["cka"])
    text = f"Most {most['cka']:.2f}, {most['width_a']} and {most['width_b']} units in layer {most['layer']}"
    maps = [_shorten(chart_pairs(rows, layer, "cka", "likeness of outputs (CKA)"), layer) for layer in layers]
    return Panels(
        title="Likeness of outputs, experts narrow to wide",
        description=f"{text}{_describe_null_mean(known)}. "
        + (
            f"Nearly the same outputs: {', '.join(named)}."
            if named
            else "No two are found to compute nearly the same."
        ),
        maps=maps,
        columns=2 if len(maps) in (2, 4) else 3,
    )


def _describe_null_mean(rows: Sequence[Mapping[str, Any]]) -> str:
    nulls = [row["cka_null"] for row in rows if row.get("cka_null") is not None]
    return f"; by chance {statistics.fmean(nulls):.2f}" if nulls and math.isfinite(sum(nulls)) else ""


def _shorten(chart: HeatMap, layer: int) -> HeatMap:
    return HeatMap(**{**vars(chart), "title": f"layer {layer}"})


def chart_correlations(rows: Rows) -> Points:
    """Return the rank correlations of activated units with what tokens and token types are like."""

    def name(row: Mapping[str, Any]) -> str:
        given = f" | {row['given']}" if row.get("given") else ""
        return f"{row['feature']}{given}, {row['over']}".replace("_", " ")

    order = sorted(rows, key=lambda row: row["over"])  # stable: tokens, then types
    return chart_points(
        order, "Rank correlations with activated units", name, "correlation", "rank correlation"
    )
