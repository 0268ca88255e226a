"""Fit the law of loss by size and tokens, and say what of it the points do not tell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from hmoe.statistics.loss_law import LossLaw, LossPoint, Values, collect_columns, predict_loss
from hmoe.statistics.variable_projection import EXPONENT_BOUNDS, fit_two_powers

FEWEST_SIZES, FEWEST_TOKEN_COUNTS, FEWEST_POINTS = 3, 3, 6
_SAME = 0.01  # relative: sizes or token counts that differ by less are one
_AT_EDGE = 1e-6  # relative
_NUM_COEFFICIENTS, _MISFIT_LEVEL = 5, 0.01


@dataclass(frozen=True)
class LawFit:
    """A fitted law, or why there is none.

    Attributes:
        law: None where the points cannot tell it.
        reason: why there is none; None where there is one.
        doubts: coefficients of the law that are not to be read, and why; its predictions between the points hold.
        residual: root of the mean squared residual, in nats; None without a law.
        misfit: how many times farther the means of seeds lie from the law than the spread of seeds explains, where that
            is shown at 99%; None where it is not, or where no size has two seeds.
        num_points: points that it was fitted to.
        converged: whether the search came to rest.
    """

    law: LossLaw | None
    reason: str | None
    doubts: Mapping[str, str]
    residual: float | None
    num_points: int
    converged: bool
    misfit: float | None = None


def fit_loss_law(points: Sequence[LossPoint]) -> LawFit:
    """Fit L = E + A N^-alpha + B D^-beta to the points of a family by least squares of the loss."""
    sizes, tokens, losses = collect_columns(points)
    reason = _explain_lack(*_average_cells(points))
    if reason is not None:
        return LawFit(None, reason, {}, None, len(points), False)
    coefficients, converged = fit_law_rows(sizes, tokens, losses[None])
    residuals = losses - predict_loss(coefficients[0], sizes, tokens)
    return LawFit(
        LossLaw(*map(float, coefficients[0])),
        None,
        _collect_doubts(coefficients[0]),
        float(np.sqrt(np.square(residuals).mean())),
        len(points),
        bool(converged[0]),
        _measure_misfit(points, residuals),
    )


def _measure_misfit(points: Sequence[LossPoint], residuals: Values) -> float | None:
    """Return the root of the F statistic of a lack-of-fit test where it rejects the law at 1%, else None.

    Residuals of a size and budget, their mean against their spread over seeds. The points of a run share its luck, so
    the spread has only as many degrees of freedom as there are runs beyond one a size.
    """
    from scipy import stats  # noqa: PLC0415 - optional extra

    cells: dict[tuple[str, float], list[float]] = {}
    for point, residual in zip(points, residuals, strict=True):
        cells.setdefault((point.size, point.budget), []).append(float(residual))
    runs = {(point.size, point.seed) for point in points}
    free_spread = len(runs) - len({point.size for point in points})
    free_means, free_within = len(cells) - _NUM_COEFFICIENTS, len(points) - len(cells)
    if free_spread < 1 or free_means < 1 or free_within < 1:
        return None
    means = sum(len(cell) * float(np.mean(cell)) ** 2 for cell in cells.values()) / free_means
    within = sum(len(cell) * float(np.var(cell)) for cell in cells.values()) / free_within
    if means <= within * float(stats.f.isf(_MISFIT_LEVEL, free_means, free_spread)):
        return None
    return float(np.sqrt(means / within)) if within > 0 else None


def fit_law_rows(sizes: Values, tokens: Values, losses: Values) -> tuple[Values, npt.NDArray[np.bool_]]:
    """Fit a law to each row of losses (rows, points) of one design.

    Returns:
        Coefficients (rows, 5): E, A, B, alpha, beta; and whether the search came to rest (rows).
    """
    log_sizes, log_tokens = np.log(sizes), np.log(tokens)
    middle_size, middle_tokens = log_sizes.mean(), log_tokens.mean()
    fit = fit_two_powers(log_sizes - middle_size, log_tokens - middle_tokens, losses)
    alpha, beta = fit.exponents.T
    constant, of_size, of_tokens = fit.linear.T
    scaled = of_size * np.exp(alpha * middle_size), of_tokens * np.exp(beta * middle_tokens)
    return np.stack([constant, *scaled, alpha, beta], -1), fit.converged


def find_edges(coefficients: Values) -> npt.NDArray[np.bool_]:
    """Return which laws (..., 5) have an exponent at the edge of what is searched, or E, A or B of zero."""
    exponents = coefficients[..., 3:]
    low, high = EXPONENT_BOUNDS
    is_outer = (exponents <= low * (1 + _AT_EDGE)) | (exponents >= high * (1 - _AT_EDGE))
    return cast(npt.NDArray[np.bool_], is_outer.any(-1) | (coefficients[..., :3] <= 0).any(-1))


def compute_law_slopes(coefficients: Values, sizes: Values, tokens: Values) -> Values:
    """Return the derivatives of the loss at each point by E, A, B, alpha, beta (points, 5)."""
    _, of_size, of_tokens, alpha, beta = coefficients
    by_size, by_tokens = sizes**-alpha, tokens**-beta
    columns = [
        np.ones_like(by_size),
        by_size,
        by_tokens,
        -of_size * np.log(sizes) * by_size,
        -of_tokens * np.log(tokens) * by_tokens,
    ]
    return np.stack(columns, -1)


def count_distinct(values: Values) -> int:
    """Return how many values there are where such as differ by less than 1% from the next are one."""
    return 1 + int((np.diff(np.sort(np.log(values))) > _SAME).sum()) if len(values) else 0


def _average_cells(points: Sequence[LossPoint]) -> tuple[Values, Values]:
    """Return size and tokens of each planned size and budget, mean over seeds, of sizes over budgets too.

    What a router activates drifts in training and differs between seeds: that makes no further sizes.
    """
    sizes: dict[str, list[float]] = {}
    tokens: dict[tuple[str, float], list[float]] = {}
    for point in points:
        sizes.setdefault(point.size, []).append(point.model_size)
        tokens.setdefault((point.size, point.budget), []).append(point.tokens)
    means = {size: float(np.mean(values)) for size, values in sizes.items()}
    return np.array([means[size] for size, _ in tokens]), np.array(list(map(np.mean, tokens.values())))


def _explain_lack(sizes: Values, tokens: Values) -> str | None:
    """Return why no law can be fitted, or None."""
    num_sizes, num_counts = count_distinct(sizes), count_distinct(tokens)
    if num_sizes < FEWEST_SIZES:
        return f"{num_sizes} sizes, a law needs {FEWEST_SIZES}"
    if num_counts < FEWEST_TOKEN_COUNTS:
        return f"{num_counts} token counts, a law needs {FEWEST_TOKEN_COUNTS}"
    if count_distinct(sizes * tokens) < 2:
        return "all points have the same FLOPs, a law needs two budgets"
    pairs = {(round(np.log(n) / _SAME), round(np.log(d) / _SAME)) for n, d in zip(sizes, tokens, strict=True)}
    if len(pairs) < FEWEST_POINTS:
        return f"{len(pairs)} points of different size or tokens, a law needs {FEWEST_POINTS}"
    return None


def _collect_doubts(coefficients: Values) -> dict[str, str]:
    """Return the coefficients that the points do not tell, with the reason."""
    doubts: dict[str, str] = {}
    constant, of_size, of_tokens, *exponents = map(float, coefficients)
    if constant <= 0:
        doubts["E"] = "the best E is not above 0: the curve shows no floor"
    for name, scale_name, scale, exponent in zip(
        ("alpha", "beta"), ("A", "B"), (of_size, of_tokens), exponents, strict=True
    ):
        if scale <= 0:
            doubts[name] = doubts[scale_name] = f"{scale_name} = 0: the loss does not fall with it"
            continue
        for bound in EXPONENT_BOUNDS:
            if abs(exponent / bound - 1) <= _AT_EDGE:
                why = f"{name} = {bound:g}, the edge of what is searched"
                doubts.update({name: why, scale_name: why})
                doubts.setdefault("E", why)
    return doubts
