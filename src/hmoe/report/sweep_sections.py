"""What a page tells of a sweep beyond its comparison: isoFLOP fits, tuned settings, and every run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hmoe.figures.records import Curve, Curves, Points
from hmoe.report.headline import Headline
from hmoe.report.pieces import PageFigure, PagePart, PageSection, make_table
from hmoe.statistics.isoflop import FamilyResult, IsoflopResult
from hmoe.statistics.isoflop_words import describe_isoflop, format_interval, tabulate_isoflop
from hmoe.statistics.loss_law import LossPoint, predict_loss
from hmoe.units import format_flops

_CURVE_POINTS = 25  # of a law in view


@dataclass(frozen=True)
class SweepRecord:
    """All that a page tells of a sweep, computed by whoever reads its folder.

    Attributes:
        rows: of its table, as plain values, failed runs too.
        num_planned: runs of its plan.
        points: measured losses of an isoFLOP sweep; () for others.
        isoflop: its fits, or None.
        sentences: what else is to be said, such as the power of so many seeds.
        trials: rows of the settings that each family was tuned over; () for other kinds.
        speeds: rows of how fast each group was trained beside the baseline; () for other kinds.
    """

    rows: Sequence[Mapping[str, Any]]
    num_planned: int
    points: Sequence[LossPoint] = ()
    isoflop: IsoflopResult | None = None
    sentences: Sequence[str] = ()
    trials: Sequence[Mapping[str, Any]] = ()
    speeds: Sequence[Mapping[str, Any]] = ()


def write_sweep_headline(record: SweepRecord) -> Headline:
    """Return the first words on a sweep that is no comparison of recipes side by side."""
    sentences = describe_isoflop(record.isoflop) if record.isoflop is not None else tuple(record.sentences)
    failed = sum(row["status"] != "finished" for row in record.rows)
    lead = _count_runs(record) + (f", {failed} of them failed" if failed else "")
    if not sentences:
        return Headline("A sweep without an answer yet.", f"{lead}.", ())
    return Headline(sentences[0], f"{lead}.", sentences[1:6])


def _count_runs(record: SweepRecord) -> str:
    count = len({row["run"] for row in record.rows})
    return f"{count} runs" if count >= record.num_planned else f"{count} of {record.num_planned} planned runs"


def describe_sweep(record: SweepRecord) -> list[PageSection]:
    """Return the sections of a sweep."""
    sections = []
    if record.isoflop is not None:
        sections.append(_describe_fits(record.isoflop, record.points, record.sentences))
    if record.trials:
        table = make_table("trials", "Validation loss by setting.", [dict(row) for row in record.trials])
        sections.append(
            PageSection("tuning", "Tuning", "The same grid for each family.", [PagePart(tables=[table])])
        )
    if record.speeds:
        sections.append(_describe_speeds(record.speeds))
    sections.append(_list_all_runs(record))
    return sections


def _describe_speeds(speeds: Sequence[Mapping[str, Any]]) -> PageSection:
    """Return the speed of training beside quality, as the paper's figure 1 and table 2 have it."""
    table = make_table(
        "speeds",
        "Speed of training by group (HMoE table 2): tokens per second by the baseline's, with intervals.",
        [dict(row) for row in speeds],
    )
    known = [row for row in speeds if row["speed"] is not None]
    figures = []
    if known:
        chart = Points(
            title="Speed of training",
            description="Trimmed mean over pairs of runs of one seed by one commit on one machine; intervals hold "
            "together with about 95%.",
            labels=[row["group"] for row in known],
            values=[row["speed"] for row in known],
            lows=[row["speed_low"] for row in known],
            highs=[row["speed_high"] for row in known],
            null=1.0,
            null_name="the baseline",
            x_label="tokens per second, by the baseline's",
        )
        figures.append(PageFigure(chart))
    return PageSection(
        "speed",
        "Speed",
        "What a token of training took, beside the losses above (HMoE figure 1): equal FLOPs are not equal seconds.",
        [PagePart(figures=figures, tables=[table])],
    )


def _list_all_runs(record: SweepRecord) -> PageSection:
    rows = [dict(row) for row in record.rows]
    table = make_table(
        "rows", "Every run that was started, those that failed too.", rows, is_folded=len(rows) > 30
    )
    return PageSection(
        "runs",
        "Every run",
        f"{_count_runs(record)}. Seconds were taken beside whatever else the machine did; FLOPs are those of experts "
        "really activated.",
        [PagePart(sentences=[] if record.isoflop else list(record.sentences), tables=[table])],
    )


def _describe_fits(
    result: IsoflopResult, points: Sequence[LossPoint], sentences: Sequence[str]
) -> PageSection:
    parts = [
        PagePart("What the fits say", [*describe_isoflop(result), *sentences]),
        PagePart("Loss against size", figures=list(_draw_sizes(result, points))),
        PagePart(
            "Best size, least loss, leverage",
            figures=[*_draw_frontiers(result), *_draw_leverage(result)],
            tables=[
                make_table("isoflop", "Fits by family and budget.", tabulate_isoflop(result), is_folded=True)
            ],
        ),
    ]
    return PageSection(
        "isoflop",
        "Compute-optimal models",
        "Size is what FLOPs pay for, FLOPs per token / 6. Lines are the law L = E + A / size^alpha + B / tokens^beta, "
        "fitted to the points of a family; those measured within the warm-up are left out.",
        parts,
    )


def _draw_sizes(result: IsoflopResult, points: Sequence[LossPoint]) -> Iterator[PageFigure]:
    """Yield a figure for each family: losses by size at each budget (HMoE figure 4)."""
    for family in result.families:
        own = sorted((point for point in points if point.family == family.family), key=lambda p: p.model_size)
        budgets = sorted({point.budget for point in own})
        curves: list[Curve] = []
        for place, budget in enumerate(budgets):
            rank = place / max(len(budgets) - 1, 1)
            at = [point for point in own if point.budget == budget]
            curves.append(
                Curve(
                    label=f"{format_flops(budget)} FLOPs",
                    xs=[point.model_size for point in at],
                    ys=[point.loss for point in at],
                    rank=rank,
                    is_line=False,
                )
            )
            curves += _draw_law(family, budget, at, rank)
        chart = Curves(
            title=f"{family.family}: loss by size",
            description=_tell_optima(family),
            curves=curves,
            x_label="size: FLOPs per token / 6",
            y_label="validation loss, nats per token",
            log_x=True,
        )
        yield PageFigure(chart)


def _draw_law(family: FamilyResult, budget: float, at: Sequence[LossPoint], rank: float) -> list[Curve]:
    law = family.fit.law
    if law is None or len({point.model_size for point in at}) < 2:
        return []
    low, high = min(point.model_size for point in at), max(point.model_size for point in at)
    sizes = [low * (high / low) ** (i / (_CURVE_POINTS - 1)) for i in range(_CURVE_POINTS)]
    losses = [float(predict_loss(law.coefficients, size, budget / 6 / size)) for size in sizes]
    return [Curve(label="", xs=sizes, ys=losses, rank=rank)]


def _tell_optima(family: FamilyResult) -> str:
    sentences = [
        f"At {format_flops(budget.budget)} FLOPs the best size is {format_interval(budget.optimal_size, '.3g')}"
        f"{', outside of the sizes that were measured' if budget.is_extrapolated else ''}."
        for budget in family.budgets
        if budget.optimal_size is not None and budget.optimal_size.value is not None
    ]
    return (
        " ".join(sentences)
        or f"{family.family} has no best size: {family.fit.reason or 'the law shows none'}."
    )


def _draw_frontiers(result: IsoflopResult) -> Iterator[PageFigure]:
    """Yield the least loss and the best size of each family against FLOPs, with bands."""
    kinds = (
        ("frontier_loss", "Least loss by FLOPs", "loss at the best size, nats per token"),
        ("optimal_size", "Best size by FLOPs", "FLOPs per token / 6 of the best size"),
    )
    for name, title, y_label in kinds:
        curves = []
        for place, family in enumerate(result.families):
            budgets = [budget for budget in family.budgets if getattr(budget, name) is not None]
            values = [getattr(budget, name) for budget in budgets]
            has_band = all(value.low is not None and value.high is not None for value in values)
            if budgets:
                curves.append(
                    Curve(
                        label=family.family,
                        xs=[budget.budget for budget in budgets],
                        ys=[value.value for value in values],
                        lows=[value.low for value in values] if has_band else (),
                        highs=[value.high for value in values] if has_band else (),
                        rank=place / max(len(result.families) - 1, 1),
                    )
                )
        if curves:
            chart = Curves(
                title=title,
                description=f"By the law of each family; bands are {result.confidence:.0%} intervals.",
                curves=curves,
                x_label="training FLOPs",
                y_label=y_label,
                log_x=True,
            )
            yield PageFigure(chart)


def _draw_leverage(result: IsoflopResult) -> Iterator[PageFigure]:
    """Yield what a FLOP of each family is worth in FLOPs of the reference, at the largest budget that has it."""
    labels, values, lows, highs = [], [], [], []
    for family in result.families[1:]:
        known = [budget for budget in family.budgets if budget.leverage is not None]
        if not known or known[-1].leverage is None:
            continue
        interval = known[-1].leverage.interval
        labels.append(f"{family.family} at {format_flops(known[-1].budget)}")
        values.append(interval.value)
        lows.append(interval.low)
        highs.append(interval.high)
    if labels:
        chart = Points(
            title=f"Efficiency leverage over {result.reference}",
            description=f"FLOPs that {result.reference} needs for the same loss, by the FLOPs spent; "
            f"intervals of {result.comparison_confidence:.1%} each.",
            labels=labels,
            values=values,
            lows=lows,
            highs=highs,
            x_label=f"FLOPs of {result.reference} for one FLOP",
        )
        yield PageFigure(chart)
