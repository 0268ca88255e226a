"""What an isoFLOP comparison says, in sentences as strong as their intervals, and as flat rows."""

import math
from collections.abc import Iterator

from hmoe.statistics.isoflop import COEFFICIENTS, BudgetResult, FamilyResult, IsoflopResult
from hmoe.statistics.leverage import Leverage
from hmoe.statistics.run_bootstrap import PercentileInterval
from hmoe.units import format_count, format_flops

Row = dict[str, str | float | int | None]


def describe_isoflop(result: IsoflopResult) -> tuple[str, ...]:
    """Return sentences: the comparison at the largest budget at which each family has one, then what limits it."""
    reference, *others = result.families
    sentences: list[str] = []
    for family in others:
        sentences.extend(_describe_comparison(family, reference))
    if len(others) > 1 and any(budget.leverage for family in others for budget in family.budgets):
        sentences.append(
            f"Intervals of the {len(others)} comparisons hold together with {result.confidence:.0%} at each budget "
            f"(Bonferroni: {result.comparison_confidence:.1%} each)."
        )
    for family in result.families:
        sentences.extend(_describe_limits(family, result.num_resamples))
    return tuple(sentences)


def format_interval(interval: PercentileInterval, digits: str, unit: str = "") -> str:
    """Return a value with its interval in words, such as "1.07x (0.98 to 1.15)"; `digits` is a format."""
    value = "more than can be told" if interval.value is None else f"{interval.value:{digits}}{unit}"
    if interval.low is None:
        return f"{value} (no interval)"
    low = f"{interval.low:{digits}}"
    high = "open" if interval.high is None else f"{interval.high:{digits}}"
    return f"{value} ({low} to {high})"


def tabulate_isoflop(result: IsoflopResult) -> list[Row]:
    """Return a flat row for each family and budget, with the law's coefficients: leverage can be recomputed of them.

    An open end, and what is not claimed, is None; a lower end that is infinite is "inf".
    """
    return [
        {
            "family": family.family,
            "reference": result.reference,
            **_flatten_fit(family),
            **_flatten_budget(budget),
        }
        for family in result.families
        for budget in family.budgets
    ]


def _describe_comparison(family: FamilyResult, reference: FamilyResult) -> Iterator[str]:
    compared = [budget for budget in family.budgets if budget.leverage is not None]
    if not compared:
        why = family.fit.reason or reference.fit.reason or "a law shows no best size for a budget"
        yield f"{family.family} cannot be compared with {reference.family}: {why}."
        return
    budget = compared[-1]
    assert budget.leverage is not None
    yield _describe_leverage(family.family, reference.family, budget.leverage)
    if budget.difference is not None:
        yield (
            f"The loss of {family.family} at its best size for {format_flops(budget.budget)} FLOPs is "
            f"{format_interval(budget.difference, '+.4f', ' nats')} from that of {reference.family}: "
            f"{_judge(budget.difference, 0.0, 'lower', 'higher')}."
        )
    if budget.leverage_in_seconds is not None:
        seconds = budget.leverage_in_seconds
        yield (
            f"In seconds, by runs side by side, it is worth {format_interval(seconds, '.3g', 'x')}: "
            f"{_judge(seconds, 1.0, 'slower', 'faster')}."
        )
    if budget.leverage.extrapolations:
        yield f"Extrapolated: {'; '.join(budget.leverage.extrapolations)}."


def _describe_leverage(family: str, reference: str, leverage: Leverage) -> str:
    start = f"{family} at {format_flops(leverage.flops)} FLOPs"
    interval = leverage.interval
    if leverage.reference_flops is None:
        share = f"{leverage.share_unreached:.1%} of the resamples" if interval.num_used else "the only fit"
        is_bounded = interval.low is not None and math.isfinite(interval.low)
        least = f"; it is worth at least {interval.low:.2f}x" if is_bounded else ""
        shown = _judge(interval, 1.0, "worth less", "worth more")
        return (
            f"{start} reaches a loss that {reference} by its law never reaches, in {share}{least}: {shown}."
        )
    verdict = _judge(interval, 1.0, "worth less", "worth more")
    words = (
        f"{start} is worth {format_interval(interval, '.3g', 'x')} of the compute of {reference}: {verdict}"
    )
    if leverage.share_unreached > 0:
        words += f"; in {leverage.share_unreached:.1%} of the resamples {reference} never reaches its loss"
    return words + "."


def _judge(interval: PercentileInterval, null: float, below: str, above: str) -> str:
    """Return what an interval shows of a value: on which side of the null it is, or that this is not known."""
    if interval.low is None:
        return "without an interval nothing is shown"
    if not interval.excludes(null):
        return "no difference shown"
    return above if interval.low > null else below


def _describe_limits(family: FamilyResult, num_resamples: int) -> Iterator[str]:
    if family.fit.reason is not None:
        yield f"{family.family} has no law: {family.fit.reason}."
        return
    for name, why in family.fit.doubts.items():
        yield f"{name} of {family.family} is not told by the points: {why}."
    if family.fit.misfit is not None:
        yield (
            f"Means of seeds of {family.family} lie {family.fit.misfit:.1f} times as far from its law as the spread of "
            "seeds explains: they are not of its form, and what is read off it is less certain than its intervals say."
        )
    if not family.fit.converged:
        yield f"The fit of {family.family} did not come to rest."
    if family.resamples is None:
        yield f"{family.family} has no intervals: too few runs for a spread between them; add seeds or sizes."
    elif family.resamples.num_failed or family.resamples.num_at_edge:
        yield (
            f"Of {num_resamples} resamples of {family.family} {family.resamples.num_failed} did not come to rest and "
            f"{family.resamples.num_at_edge} have a coefficient at the edge of its range."
        )
    for budget in family.budgets:
        if budget.parabola is not None and budget.parabola.reason is not None:
            where = f"{family.family} at {format_flops(budget.budget)}"
            yield f"No parabola's optimum of {where}: {budget.parabola.reason}."
    disagreements = [budget for budget in family.budgets if budget.size_disagreement is not None]
    if disagreements:
        worst = max(
            disagreements, key=lambda b: max(b.size_disagreement or 1, 1 / (b.size_disagreement or 1))
        )
        assert worst.parabola is not None
        assert worst.parabola.optimal_size is not None
        yield (
            f"Parabola and law of {family.family} disagree most about the best size at {format_flops(worst.budget)}: "
            f"{format_count(worst.parabola.optimal_size)}, {worst.size_disagreement:.2f} times that of the law, "
            "which has no such bias where losses are of its form."
        )


def _flatten_fit(family: FamilyResult) -> Row:
    law = family.fit.law
    row: Row = {name: None if law is None else getattr(law, name) for name in COEFFICIENTS}
    for name, interval in family.coefficients.items():
        key = name.replace(" ", "_")
        row[f"{key}_low"], row[f"{key}_high"] = interval.low, interval.high
    for name in (*COEFFICIENTS, "size_exponent"):
        row.setdefault(f"{name}_low", None)
        row.setdefault(f"{name}_high", None)
    doubts = "; ".join(f"{name}: {why}" for name, why in family.fit.doubts.items())
    power = family.optimum_power_law
    resamples = family.resamples
    return {
        **row,
        "residual": family.fit.residual,
        "misfit": family.fit.misfit,
        "num_points": family.fit.num_points,
        "num_runs": None if resamples is None else resamples.num_runs,
        "doubts": family.fit.reason or doubts or None,
        "num_failed": None if resamples is None else resamples.num_failed,
        "num_at_edge": None if resamples is None else resamples.num_at_edge,
        "parabola_size_exponent": None if power is None else power.exponent,
    }


def _flatten_budget(budget: BudgetResult) -> Row:
    row: Row = {"budget": budget.budget, "is_extrapolated": int(budget.is_extrapolated)}
    intervals = {
        "optimal_size": budget.optimal_size,
        "frontier_loss": budget.frontier_loss,
        "difference": budget.difference,
        "leverage": None if budget.leverage is None else budget.leverage.interval,
        "leverage_in_seconds": budget.leverage_in_seconds,
    }
    for name, interval in intervals.items():
        for suffix, field in (("", "value"), ("_low", "low"), ("_high", "high")):
            value = None if interval is None else getattr(interval, field)
            row[name + suffix] = "inf" if value == math.inf else value
    parabola, leverage = budget.parabola, budget.leverage
    outside = ["size"] * budget.is_extrapolated + ["leverage"] * bool(leverage and leverage.extrapolations)
    return {
        **row,
        "extrapolated": ", ".join(outside) or None,
        "optimal_tokens": budget.optimal_tokens,
        "reference_flops": None if leverage is None else leverage.reference_flops,
        "share_unreached": None if leverage is None else leverage.share_unreached,
        "parabola_flops": None if parabola is None else parabola.flops,
        "parabola_size": None if parabola is None else parabola.optimal_size,
        "parabola_loss": None if parabola is None else parabola.minimum_loss,
        "parabola_reason": None if parabola is None else parabola.reason,
        "size_disagreement": budget.size_disagreement,
        "loss_disagreement": budget.loss_disagreement,
    }
