"""The whole comparison of families of models at equal FLOPs: both fits, their optima, leverage, all with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hmoe.errors import ConfigError
from hmoe.statistics.isoflop_parabola import (
    BudgetParabola,
    PowerLaw,
    fit_optimum_power_law,
    fit_parabolas,
)
from hmoe.statistics.leverage import (
    ComputeCost,
    FittedFamily,
    Leverage,
    estimate_leverage,
    estimate_leverage_in_seconds,
)
from hmoe.statistics.loss_law import LossPoint, Values, compute_frontier_loss, compute_optimal_size
from hmoe.statistics.loss_law_fit import LawFit, fit_loss_law
from hmoe.statistics.run_bootstrap import (
    FamilyResamples,
    PercentileInterval,
    compute_percentile_interval,
    resample_families,
)

COEFFICIENTS = ("E", "A", "B", "alpha", "beta")
OPTIMUM_EXPONENT = "size exponent"  # a in N_opt ~ C^a: beta / (alpha + beta)


@dataclass(frozen=True)
class BudgetResult:
    """A family at a budget; everything of the law at its own best size.

    Attributes:
        budget: FLOPs C.
        parabola: of the points of this budget; None if the family has none.
        optimal_size: N by the law; None without a frontier.
        optimal_tokens: D by the law.
        frontier_loss: by the law, in nats.
        is_extrapolated: whether the best size lies outside the sizes that were measured.
        size_disagreement: best N of the parabola by that of the law at the same FLOPs; None unless both claim one.
        loss_disagreement: least loss of the parabola minus that of the law, in nats.
        difference: frontier loss minus that of the reference, in nats; None for the reference.
        leverage: over the reference; None for the reference.
        leverage_in_seconds: None for the reference, and where a cost is not known.
    """

    budget: float
    parabola: BudgetParabola | None
    optimal_size: PercentileInterval | None = None
    optimal_tokens: float | None = None
    frontier_loss: PercentileInterval | None = None
    is_extrapolated: bool = False
    size_disagreement: float | None = None
    loss_disagreement: float | None = None
    difference: PercentileInterval | None = None
    leverage: Leverage | None = None
    leverage_in_seconds: PercentileInterval | None = None


@dataclass(frozen=True)
class FamilyResult:
    """Both fits of a family.

    Attributes:
        family: its name.
        fit: of the law.
        coefficients: of the law and of its optimum, with intervals; without those that `fit.doubts` names.
        optimum_power_law: of the parabolas' optima; None if fewer than two budgets have one.
        resamples: how many there were, of how many runs; None where runs leave no spread, so no interval either.
        budgets: smallest first.
    """

    family: str
    fit: LawFit
    coefficients: Mapping[str, PercentileInterval]
    optimum_power_law: PowerLaw | None
    resamples: FamilyResamples | None
    budgets: tuple[BudgetResult, ...]


@dataclass(frozen=True)
class IsoflopResult:
    """All families, the reference first.

    Attributes:
        reference: name of the family that leverage and differences are over.
        confidence: of intervals of the law, and of all comparisons of a budget together.
        comparison_confidence: of each comparison alone: Bonferroni's correction for the families compared.
        num_resamples: asked for.
        families: results.
    """

    reference: str
    confidence: float
    comparison_confidence: float
    num_resamples: int
    families: tuple[FamilyResult, ...]


def analyze_isoflop(
    points: Sequence[LossPoint],
    reference: str,
    costs: Mapping[str, ComputeCost] | None = None,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> IsoflopResult:
    """Fit every family and compare each with the reference at every budget that was measured.

    Args:
        points: of all families.
        reference: name of the family that the others are compared with.
        costs: seconds per FLOP by family, measured side by side; those of some may lack.
        num_resamples: of whole runs.
        confidence: of the intervals.
        seed: of the resamples.

    Raises:
        ConfigError: if the reference has no points, or runs have two points of a budget.
    """
    families = _group_families(points, reference)
    fits = {name: fit_loss_law(family) for name, family in families.items()}
    resamples = resample_families(families, num_resamples, seed)
    fitted = {
        name: FittedFamily(families[name], fit.law, resamples.get(name))
        for name, fit in fits.items()
        if fit.law is not None
    }
    budgets = sorted({point.budget for point in points})
    alone = 1 - (1 - confidence) / max(len(families) - 1, 1)
    results = []
    for name, family in families.items():
        parabolas = fit_parabolas(family)
        by_budget = {parabola.budget: parabola for parabola in parabolas}
        comparison = _Comparison(name, fitted, reference, costs or {}, confidence, alone)
        results.append(
            FamilyResult(
                family=name,
                fit=fits[name],
                coefficients=_summarize_coefficients(fits[name], resamples.get(name), confidence),
                optimum_power_law=fit_optimum_power_law(parabolas),
                resamples=resamples.get(name),
                budgets=tuple(comparison.compare_at(budget, by_budget.get(budget)) for budget in budgets),
            )
        )
    return IsoflopResult(reference, confidence, alone, num_resamples, tuple(results))


def _group_families(points: Sequence[LossPoint], reference: str) -> dict[str, list[LossPoint]]:
    """Return the points of each family, the reference first."""
    families: dict[str, list[LossPoint]] = {reference: []}
    for point in points:
        families.setdefault(point.family, []).append(point)
    if not families[reference]:
        names = ", ".join(sorted(set(families) - {reference})) or "there is none"
        raise ConfigError(f"reference = {reference}: must be a family: {names}", argument="reference")
    return families


@dataclass(frozen=True)
class _Comparison:
    """A family beside the reference."""

    name: str
    fitted: Mapping[str, FittedFamily]
    reference: str
    costs: Mapping[str, ComputeCost]
    confidence: float
    alone: float

    def compare_at(self, budget: float, parabola: BudgetParabola | None) -> BudgetResult:
        """Return everything at a budget."""
        family = self.fitted.get(self.name)
        if family is None or (optimum := family.law.optimal_size(budget)) is None:
            return BudgetResult(budget, parabola)
        loss = float(compute_frontier_loss(family.law.coefficients, budget))
        sizes = [point.model_size for point in family.points]
        draws = _get_draws(family)
        size_disagreement, loss_disagreement = _compare_fits(parabola, family)
        leverage, seconds, difference = self._compare_frontiers(family, budget)
        return BudgetResult(
            budget=budget,
            parabola=parabola,
            optimal_size=compute_percentile_interval(
                optimum[0], compute_optimal_size(draws, budget), self.confidence
            ),
            optimal_tokens=optimum[1],
            frontier_loss=compute_percentile_interval(
                loss, compute_frontier_loss(draws, budget), self.confidence
            ),
            is_extrapolated=not min(sizes) <= optimum[0] <= max(sizes),
            size_disagreement=size_disagreement,
            loss_disagreement=loss_disagreement,
            difference=difference,
            leverage=leverage,
            leverage_in_seconds=seconds,
        )

    def _compare_frontiers(
        self, family: FittedFamily, budget: float
    ) -> tuple[Leverage | None, PercentileInterval | None, PercentileInterval | None]:
        """Return leverage, leverage in seconds and difference of frontier losses."""
        reference = self.fitted.get(self.reference)
        if self.name == self.reference or reference is None or not reference.law.has_frontier:
            return None, None, None
        leverage = estimate_leverage(family, reference, budget, confidence=self.alone)
        costs = self.costs.get(self.name), self.costs.get(self.reference)
        seconds = None
        if costs[0] is not None and costs[1] is not None:
            seconds = estimate_leverage_in_seconds(
                family, reference, budget, (costs[0], costs[1]), self.alone
            )
        value = _subtract_frontiers(family.law.coefficients, reference.law.coefficients, budget)
        draws = np.empty(0)
        if family.resamples is not None and reference.resamples is not None:
            draws = _subtract_frontiers(_get_draws(family), _get_draws(reference), budget)
        return leverage, seconds, compute_percentile_interval(float(value), draws, self.alone)


def _compare_fits(parabola: BudgetParabola | None, family: FittedFamily) -> tuple[float | None, float | None]:
    """Return best size of the parabola by that of the law, and the difference of least losses, at its mean FLOPs."""
    if parabola is None or parabola.optimal_size is None or parabola.minimum_loss is None:
        return None, None
    size = float(compute_optimal_size(family.law.coefficients, parabola.flops))
    loss = float(compute_frontier_loss(family.law.coefficients, parabola.flops))
    return parabola.optimal_size / size, parabola.minimum_loss - loss


def _subtract_frontiers(family: Values, reference: Values, budget: float) -> Values:
    return compute_frontier_loss(family, budget) - compute_frontier_loss(reference, budget)


def _get_draws(family: FittedFamily) -> Values:
    return np.empty((0, 5)) if family.resamples is None else family.resamples.coefficients


def _summarize_coefficients(
    fit: LawFit, resamples: FamilyResamples | None, confidence: float
) -> dict[str, PercentileInterval]:
    """Return intervals of the coefficients that the points tell, and of the exponent of the best size."""
    if fit.law is None:
        return {}
    draws = np.empty((0, 5)) if resamples is None else resamples.coefficients
    values = dict(zip(COEFFICIENTS, fit.law.coefficients, strict=True))
    columns = dict(zip(COEFFICIENTS, draws.T, strict=True))
    if fit.law.has_frontier:
        values[OPTIMUM_EXPONENT] = fit.law.beta / (fit.law.alpha + fit.law.beta)
        columns[OPTIMUM_EXPONENT] = draws[:, 4] / (draws[:, 3] + draws[:, 4])
    doubtful = {*fit.doubts, *([OPTIMUM_EXPONENT] if {"alpha", "beta"} & set(fit.doubts) else [])}
    return {
        name: compute_percentile_interval(float(value), columns[name], confidence)
        for name, value in values.items()
        if name not in doubtful
    }
