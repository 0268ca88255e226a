"""Intervals of fitted laws by resampling whole runs, the same draw for every family.

Points of a run are not independent: it is measured at several budgets on its way. And runs of the same size and seed
read the same data in every family, so their losses move together. So a resample takes, for each cell (size and seed),
the residuals of the law over the whole run of another cell, chosen at random, in every family those of the same cell.

With two seeds a size, resampling the runs of a size among themselves is far too narrow, and so are percentiles of
residuals: fits are closer to their points than the truth is, and a spread of few runs is itself rough. Residuals have
a random sign, are enlarged by sqrt(runs / d) and scaled in each resample by sqrt(d / chi^2_d), so that a linear
estimate gets Student's t interval. d is runs - p, where p is what the fit takes of a spread between runs, in runs; for
the mean residual of a run and for the rest each its own: with nested budgets the fit takes three runs of eight of the
means, and little of the rest. Checked by simulation: `tests/statistics/test_isoflop_coverage.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hmoe.errors import ConfigError
from hmoe.statistics.loss_law import LossPoint, Values, collect_columns
from hmoe.statistics.loss_law_fit import LawFit, compute_law_slopes, find_edges, fit_law_rows, fit_loss_law

Cell = tuple[str, int, float]  # size, seed, and the first budget where each budget has a run of its own
FEWEST_DEGREES = 0.9  # runs beyond what the fit takes: without any there is no spread to resample


@dataclass(frozen=True)
class FamilyResamples:
    """Laws of a family fitted to resampled losses.

    Attributes:
        coefficients: (resamples, 5): E, A, B, alpha, beta; NaN where the search did not come to rest.
        num_failed: resamples whose search did not come to rest; they are in no interval.
        num_at_edge: resamples with an exponent at the edge of what is searched, or E, A or B of 0; they count.
        num_runs: runs of the family.
        degrees: d of the means of runs, what the fit leaves of them.
    """

    coefficients: Values
    num_failed: int
    num_at_edge: int
    num_runs: int
    degrees: float


@dataclass(frozen=True)
class PercentileInterval:
    """An estimate with the interval of its resamples.

    Attributes:
        value: of the points themselves; None where there is none.
        low: lower end, infinite where all but a few resamples are; None without an interval.
        high: upper end; None where it is open or there is no interval.
        num_used: resamples that have a value, infinite ones too.
    """

    value: float | None
    low: float | None
    high: float | None
    num_used: int

    def excludes(self, value: float) -> bool:
        """Whether the interval lies on one side of a value."""
        return (self.low is not None and self.low > value) or (self.high is not None and self.high < value)


@dataclass(frozen=True)
class _Runs:
    """Points of a family, ordered by cell."""

    points: tuple[LossPoint, ...]
    cells: Mapping[Cell, Mapping[float, int]]  # cell -> budget -> place of the point
    fitted: Values
    means: Values  # residual of each point's run on average
    rests: Values  # residual of each point less that
    degrees: tuple[float, float]  # d of the means and of the rests


def resample_families(
    families: Mapping[str, Sequence[LossPoint]], num_resamples: int = 1000, seed: int = 0
) -> dict[str, FamilyResamples]:
    """Return laws fitted to resampled losses of each family that has a law and runs enough.

    Row k of every family comes of the same draw, so differences between families are taken row by row.

    Raises:
        ConfigError: if a run has two points of a budget, or a family has two runs of a size, seed and budget.
    """
    from scipy import stats  # noqa: PLC0415 - optional extra

    if num_resamples < 1:
        raise ConfigError(f"num_resamples = {num_resamples}: must be at least 1", argument="num_resamples")
    runs = group_runs(families)
    if not runs:
        return {}
    generator = np.random.default_rng(seed)
    cells = sorted({cell for family in runs.values() for cell in family.cells})
    donors = _draw_donors(cells, list(runs.values()), num_resamples, generator)
    signs = generator.choice([-1.0, 1.0], (num_resamples, len(cells)))
    rarity = generator.random((2, num_resamples))
    resamples = {}
    for name, family in runs.items():
        losses = np.tile(family.fitted, (num_resamples, 1))
        for residuals, degrees, tails in zip(
            (family.means, family.rests), family.degrees, rarity, strict=True
        ):
            factor = np.sqrt(len(family.cells) / stats.chi2.ppf(tails, degrees))
            losses += factor[:, None] * _place_residuals(family, residuals, cells, donors, signs)
        resamples[name] = _refit(family, losses)
    return resamples


def group_runs(families: Mapping[str, Sequence[LossPoint]]) -> dict[str, _Runs]:
    """Return the runs of each family with the residuals of its law; without those whose runs leave no spread."""
    fits = {name: fit_loss_law(points) for name, points in families.items()}
    cells = {name: _find_cells(points, _has_own_runs(families)) for name, points in families.items()}
    runs = {}
    for name, points in families.items():
        fit = fits[name]
        if fit.law is None:
            continue
        sizes, tokens, losses = collect_columns(points)
        fitted = fit.law.predict(sizes, tokens)
        residuals = losses - fitted
        means = np.empty(len(points))
        for places in map(_list_places, cells[name].values()):
            means[places] = residuals[places].mean()
        degrees = _count_degrees(fit, points, list(cells[name].values()))
        if degrees[0] >= FEWEST_DEGREES:
            runs[name] = _Runs(tuple(points), cells[name], fitted, means, residuals - means, degrees)
    return runs


def compute_percentile_interval(
    value: float | None, draws: npt.ArrayLike, confidence: float = 0.95
) -> PercentileInterval:
    """Return the percentiles of resamples; NaN ones are left out, an upper end among infinite ones is open."""
    values = np.asarray(draws, np.float64)
    values = values[~np.isnan(values)]
    estimate = value if value is not None and np.isfinite(value) else None
    if not len(values):
        return PercentileInterval(estimate, None, None, 0)
    beyond = 50 * (1 - confidence)
    low = float(np.percentile(values, beyond, method="lower"))
    high = float(np.percentile(values, 100 - beyond, method="higher"))
    return PercentileInterval(estimate, low, None if np.isinf(high) else high, len(values))


def _has_own_runs(families: Mapping[str, Sequence[LossPoint]]) -> bool:
    """Whether anywhere a size and seed has several runs, which are then of one budget each."""
    seen: dict[tuple[str, str, int], str] = {}
    points = [(name, point) for name, all_points in families.items() for point in all_points]
    return any(
        seen.setdefault((name, point.size, point.seed), point.run) != point.run for name, point in points
    )


def _find_cells(points: Sequence[LossPoint], has_own_runs: bool) -> dict[Cell, dict[float, int]]:
    first: dict[str, float] = {}
    for point in points:
        first[point.run] = min(point.budget, first.get(point.run, point.budget))
    cells: dict[Cell, dict[float, int]] = {}
    for place, point in enumerate(points):
        budgets = cells.setdefault((point.size, point.seed, first[point.run] if has_own_runs else 0.0), {})
        if point.budget in budgets:
            raise ConfigError(
                f"family {point.family}, size {point.size}, seed {point.seed}: two points of the budget "
                f"{point.budget:g}, of the runs {points[budgets[point.budget]].run} and {point.run}"
            )
        budgets[point.budget] = place
    return cells


def _count_degrees(
    fit: LawFit, points: Sequence[LossPoint], cells: Sequence[Mapping[float, int]]
) -> tuple[float, float]:
    """Return how many runs' worth of squares the linearised fit leaves, of the means of runs and of the rests.

    With H the projection onto the derivatives by the coefficients, noise of variance 1 that all b points of a run have
    in common has b squares and loses 1' H 1; noise of each point less its run's mean has b - 1 and loses
    tr H - 1' H 1 / b.
    """
    assert fit.law is not None
    sizes, tokens, _ = collect_columns(points)
    slopes = compute_law_slopes(fit.law.coefficients, sizes, tokens)
    lengths = np.linalg.norm(slopes, axis=0)
    slopes = slopes[:, lengths > 0] / lengths[lengths > 0]
    projection = slopes @ np.linalg.pinv(slopes, rcond=1e-10)
    taken = sum(float(projection[np.ix_(p, p)].sum()) / len(p) for p in map(_list_places, cells))
    rests = len(points) - len(cells)
    share = (float(np.trace(projection)) - taken) / max(rests, 1)
    return len(cells) - taken, len(cells) * max(1 - share, 1 / len(cells))


def _list_places(cell: Mapping[float, int]) -> list[int]:
    return list(cell.values())


def _draw_donors(
    cells: Sequence[Cell], runs: Sequence[_Runs], num_resamples: int, generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Return for each resample and cell the place of the cell that gives its residuals (resamples, cells).

    Only a cell that every family has at all budgets where it has the other may give; each may to itself.
    """
    donors = np.empty((num_resamples, len(cells)), np.int64)
    for place, cell in enumerate(cells):
        able = [
            k
            for k, donor in enumerate(cells)
            if all(
                set(family.cells[cell]) <= set(family.cells.get(donor, ()))
                for family in runs
                if cell in family.cells
            )
        ]
        donors[:, place] = np.array(able)[generator.integers(len(able), size=num_resamples)]
    return donors


def _place_residuals(
    family: _Runs, residuals: Values, cells: Sequence[Cell], donors: npt.NDArray[np.int64], signs: Values
) -> Values:
    """Return the residuals that each point gets (resamples, points)."""
    noise = np.zeros((len(donors), len(family.points)))
    for column, cell in enumerate(cells):
        for budget, place in family.cells.get(cell, {}).items():
            source = np.array([family.cells.get(donor, {}).get(budget, -1) for donor in cells])
            noise[:, place] = signs[:, column] * residuals[source[donors[:, column]]]
    return noise


def _refit(family: _Runs, losses: Values) -> FamilyResamples:
    sizes, tokens, _ = collect_columns(family.points)
    coefficients, converged = fit_law_rows(sizes, tokens, losses)
    at_edge = find_edges(coefficients) & converged
    coefficients = np.where(converged[:, None], coefficients, np.nan)
    return FamilyResamples(
        coefficients, int((~converged).sum()), int(at_edge.sum()), len(family.cells), family.degrees[0]
    )
