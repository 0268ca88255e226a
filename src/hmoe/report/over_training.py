"""Which experts worked while a run was trained, and what its losses asked of them."""

from collections.abc import Iterator, Sequence
from typing import Any

from hmoe.figures.records import Curve, Curves, River, RiverBand
from hmoe.report.inputs import ReportInputs, RunRecord
from hmoe.report.learning import rank_groups, smooth_points, thin_rows
from hmoe.report.pieces import PageFigure, PagePart, PageSection, make_table
from hmoe.runs.probe_history import read_probe_history
from hmoe.runs.training_history import list_history_tables, read_training_history
from hmoe.units import format_count

MOST_RECIPES = 8  # whose routing is shown
MOST_RIVERS = 4
_MOST_ROWS = 3000  # of the CSV files of one kind together
_RIVER_POINTS = 100
_TERMS = {
    "parameter_penalty": "penalty for wide experts",
    "load_balance": "load-balancing loss",
    "router_entropy": "entropy of the router",
    "router_z": "router z-loss",
    "mean_activated_width": "activated hidden units",
    "experts_per_token": "experts per token",
    "grad_norm": "norm of the gradient",
}
_Rows = list[dict[str, Any]]


def describe_training(inputs: ReportInputs) -> PageSection | None:
    """Return the section on routing over training; None where all models are dense."""
    firsts = [inputs.get_records(group.name)[0] for group in inputs.groups]
    with_experts = [record for record in firsts if record.widths]
    if not with_experts:
        return None
    chosen = with_experts[:MOST_RECIPES]
    tables = {
        record.name: list_history_tables(read_training_history(record.summary.path)) for record in chosen
    }
    unequal = [record for record in chosen if len(set(record.widths)) > 1]
    drawn = unequal[:MOST_RIVERS]
    rivers = [
        _draw_river(record, tables[record.name]["history"], _MOST_ROWS // len(drawn)) for record in drawn
    ]
    parts = [
        PagePart(
            "Activated parameters by width",
            ["Each band is the experts of one width, the narrowest at the bottom."],
            [river for river in rivers if river],
        )
        if any(rivers)
        else PagePart(),
        *_describe_terms(inputs, chosen, tables),
        *_describe_saturation(chosen),
    ]
    return PageSection(
        "training",
        "Which experts worked",
        "What a token activated, from the first step to the last.",
        parts,
        list(_list_notes(inputs, with_experts, unequal, tables)),
    )


def _list_notes(
    inputs: ReportInputs,
    with_experts: Sequence[RunRecord],
    unequal: Sequence[RunRecord],
    tables: dict[str, dict[str, _Rows]],
) -> Iterator[str]:
    """Yield what the section leaves out."""
    if len(unequal) > MOST_RIVERS:
        yield f"{len(unequal) - MOST_RIVERS} more recipes have no river here."
    if len(tables) < len(with_experts):
        yield f"Of {len(with_experts)} recipes with experts the first {len(tables)} are shown here."
    if len(unequal) < len(tables):
        yield "Equal experts have one width, and no river."
    if any(len(table["history_terms"]) > _MOST_ROWS // len(tables) for table in tables.values()):
        yield "CSV files of long trainings hold evenly spaced steps; metrics.jsonl has all of them."
    if len(inputs.records) > len(inputs.groups):
        yield "Of each recipe its first seed is drawn."


def _draw_river(record: RunRecord, rows: _Rows, most_rows: int) -> PageFigure | None:
    widths = sorted({row["width"] for row in rows})
    if not widths:
        return None
    by_width = {width: [row for row in rows if row["width"] == width] for width in widths}
    bands: list[RiverBand] = []
    tokens: Sequence[float] = ()
    for place, width in enumerate(widths):
        points = smooth_points(
            [(row["tokens"], row["activated_parameters"]) for row in by_width[width]], _RIVER_POINTS
        )
        tokens, ys = zip(*points, strict=True)
        bands.append(RiverBand(label=f"{width}", ys=ys, rank=place / max(len(widths) - 1, 1)))
    if len(tokens) < 2:
        return None
    ends = " and ".join(
        f"those of {band.label} units from {format_count(band.ys[0])} to {format_count(band.ys[-1])}"
        for band in (bands[0], bands[-1])
    )
    chart = River(
        title=f"{record.name}: parameters that a token activated",
        description=f"Experts by width: {ends}, from the first steps to the last.",
        xs=tokens,
        bands=bands,
        x_label="training tokens",
        y_label="activated parameters",
    )
    table = make_table(
        f"river-{record.name}",
        f"{record.name}: activated parameters by width of the experts.",
        thin_by_step(rows, most_rows),
        2 * len(widths),
    )
    return PageFigure(chart, table)


def thin_by_step(rows: _Rows, most: int) -> _Rows:
    """Return rows of evenly spaced steps, at most so many."""
    steps = list(dict.fromkeys(row["step"] for row in rows))
    if not steps:
        return []
    kept = set(thin_rows(steps, max(2, most * len(steps) // len(rows))))
    return [row for row in rows if row["step"] in kept]


def _get_z_coefficient(record: RunRecord) -> float:
    moe = record.summary.config.model.moe
    return moe.router_z if moe is not None else 0.0


def _describe_terms(
    inputs: ReportInputs, records: Sequence[RunRecord], tables: dict[str, dict[str, _Rows]]
) -> Iterator[PagePart]:
    ranks = rank_groups(inputs)
    # Without a coefficient anywhere it steers nothing, and its values stand in the CSV.
    left_out = {"router_z"} if not any(_get_z_coefficient(record) for record in records) else set()
    figures = [
        figure
        for name in _TERMS
        if name not in left_out and (figure := _draw_term(name, records, tables, ranks)) is not None
    ]
    rows = [
        {"run": record.name, **row}
        for record in records
        for row in thin_by_step(
            [row for row in tables[record.name]["history_terms"] if row["name"] in _TERMS],
            _MOST_ROWS // len(records),
        )
    ]
    if figures:
        caption = "Terms of the loss and what routers did, as they were logged."
        terms = make_table("terms", caption, rows, 14, is_folded=True)
        sentences = ["Losses are shown before their coefficients, also where a recipe gives them none."]
        yield PagePart("Terms over training", sentences, figures, [terms])


def _draw_term(
    name: str,
    records: Sequence[RunRecord],
    tables: dict[str, dict[str, _Rows]],
    ranks: dict[str, float | None],
) -> PageFigure | None:
    """Draw one term of the loss, a line for each recipe; None where nobody logged it, or it never changed."""
    curves, ends, words = [], [], _TERMS[name]
    for record in records:
        rows = [row for row in tables[record.name]["history_terms"] if row["name"] == name]
        points = smooth_points([(row["tokens"], row["value"]) for row in rows if row["value"] is not None])
        if len(points) < 2:
            continue
        xs, ys = zip(*points, strict=True)
        curves.append(Curve(label=record.group, xs=xs, ys=ys, rank=ranks[record.group]))
        ends.append(f"{record.group} {_describe_line(xs, ys)}")
    if not curves or all(len(set(curve.ys)) == 1 for curve in curves):
        return None
    chart = Curves(
        title=f"{words[0].upper()}{words[1:]}",
        description=f"The line, means of neighbouring steps: {'; '.join(ends)}.",
        curves=curves,
        x_label="training tokens",
        y_label=words,
    )
    return PageFigure(chart)


def _describe_line(xs: Sequence[float], ys: Sequence[float]) -> str:
    """Return the ends of a line as drawn, and a turn between them that is beyond both."""
    text = f"{ys[0]:.4g} at {format_count(xs[0])} tokens"
    margin = 0.05 * (max(ys) - min(ys))
    if min(ys) < min(ys[0], ys[-1]) - margin:
        text += f", lowest {min(ys):.4g} at {format_count(xs[ys.index(min(ys))])}"
    if max(ys) > max(ys[0], ys[-1]) + margin:
        text += f", highest {max(ys):.4g} at {format_count(xs[ys.index(max(ys))])}"
    return f"{text}, {ys[-1]:.4g} at {format_count(xs[-1])}"


def _describe_saturation(records: Sequence[RunRecord]) -> Iterator[PagePart]:
    figures = []
    for record in records:
        rows = read_probe_history(record.summary.path)["saturation"]
        layers = list(dict.fromkeys(row["layer"] for row in rows if row["layer"] is not None))
        if len({row["step"] for row in rows}) < 2:
            continue
        curves = []
        for layer in layers:
            own = [row for row in rows if row["layer"] == layer]
            rank = layer / max(len(layers) - 1, 1)
            curves.append(
                Curve(label=f"layer {layer}", xs=[row["step"] for row in own],
                      ys=[row["agreement"] for row in own], rank=rank)
            )  # fmt: skip
        whole = [row for row in rows if row["layer"] is None]
        steps, nulls = [row["step"] for row in whole], [row["null"] for row in whole]
        curves.append(Curve(label="by chance", xs=steps, ys=nulls, rank=None, is_null=True))
        chart = Curves(
            title=f"{record.name}: how much of the last routing was there already",
            description="Share of the token-expert pairs of the last probe that an earlier one has too: "
            f"{whole[0]['agreement']:.0%} at step {steps[0]}, {whole[-2]['agreement']:.0%} at step {steps[-2]}.",
            curves=curves,
            x_label="step",
            y_label="share of pairs",
            from_zero=True,
        )
        table = make_table(
            f"saturation-{record.name}", f"{record.name}: agreement with the last probe.", rows, 20
        )
        figures.append(PageFigure(chart, table))
    if figures:
        yield PagePart("When routing settled", figures=figures)
