"""Least squares of y = E + A u^-alpha + B v^-beta with E, A, B at least 0, for many y of one design at once.

Variable projection (Golub and Pereyra 1973): for given exponents the rest is non-negative linear least squares, which
for three columns is solved in closed form by trying each of the seven sets of columns. So only two numbers are
searched: on a grid, then refined by Levenberg-Marquardt steps with Kaufman's (1975) Jacobian.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
EXPONENT_BOUNDS = (0.02, 2.0)
_GRID = np.geomspace(*EXPONENT_BOUNDS, 20)
_ITERATIONS = 200
_STEP_TOLERANCE = 1e-9  # of an exponent: no refinement moves farther
_LEAST_DAMPING, _MOST_DAMPING = 1e-12, 1e12
_CHUNK = 128  # rows of y whose sums of squares on the grid are held at once
# E, A, B; the larger sets first, so that of equal ones the full one is taken
_SETS = np.array(
    sorted((s for s in itertools.product((1, 0), repeat=3) if any(s)), key=sum, reverse=True), bool
)


@dataclass(frozen=True)
class ProjectedFit:
    """Fits of many y, one row each.

    Attributes:
        exponents: (rows, 2): alpha, beta.
        linear: (rows, 3): E, A, B, at least 0.
        squares: (rows): sum of squared residuals.
        converged: (rows): whether the search came to rest.
    """

    exponents: Values
    linear: Values
    squares: Values
    converged: npt.NDArray[np.bool_]


def fit_two_powers(log_u: Values, log_v: Values, y: Values) -> ProjectedFit:
    """Fit y = E + A u^-alpha + B v^-beta to each row of y.

    Logarithms should have means near 0, so that the columns are of like size.

    Args:
        log_u: (points).
        log_v: (points).
        y: (rows, points).
    """
    theta = np.log(_search_grid(log_u, log_v, y))
    linear, residual = _project(log_u, log_v, np.exp(theta), y)
    squares = np.square(residual).sum(-1)
    damping = np.full(len(y), 1e-3)
    converged = np.zeros(len(y), bool)
    for _ in range(_ITERATIONS):
        rows = np.flatnonzero(~converged)
        if not len(rows):
            break
        old = theta[rows]
        moved = old + _find_step(log_u, log_v, old, linear[rows], residual[rows], damping[rows])
        moved = np.clip(moved, *np.log(EXPONENT_BOUNDS))
        new_linear, new_residual = _project(log_u, log_v, np.exp(moved), y[rows])
        new_squares = np.square(new_residual).sum(-1)
        better = new_squares <= squares[rows]
        is_short = np.abs(moved - old).max(-1) <= _STEP_TOLERANCE
        accepted = rows[better]
        theta[accepted], linear[accepted] = moved[better], new_linear[better]
        residual[accepted], squares[accepted] = new_residual[better], new_squares[better]
        damping[rows] = np.clip(damping[rows] * np.where(better, 0.2, 4.0), _LEAST_DAMPING, _MOST_DAMPING)
        converged[rows] = is_short
    return ProjectedFit(np.exp(theta), linear, squares, converged)


def solve_nonnegative(columns: Values, y: Values) -> Values:
    """Return the E, A, B, all at least 0, with the least squared residuals.

    The solution of non-negative least squares is the plain one of the columns that it uses, so of all plain solutions
    without a negative coefficient the one with the least residuals is it.

    Args:
        columns: (rows, 2, points), neither constant: what A and B multiply; E multiplies ones.
        y: (rows, points).
    """
    full = np.concatenate([np.ones((len(y), 1, y.shape[-1])), columns], 1)
    best, squares = _solve_set(full, y, _SETS[0])
    rows = np.flatnonzero(np.isinf(squares))  # where a coefficient is negative
    least = np.square(y[rows]).sum(-1)
    best[rows] = 0
    for used in _SETS[1:]:
        solution, squares = _solve_set(full[rows], y[rows], used)
        better = squares < least
        best[rows[better]], least[better] = solution[better], squares[better]
    return best


def _solve_set(full: Values, y: Values, used: npt.NDArray[np.bool_]) -> tuple[Values, Values]:
    """Return plain least squares of some columns of (rows, 3, points), infinite squares where not allowed."""
    solution = np.zeros((len(y), 3))
    if not len(y):
        return solution, np.zeros(0)
    q, triangle = np.linalg.qr(full[:, used].swapaxes(1, 2))
    diagonal = np.abs(np.einsum("rii->ri", triangle))
    is_regular = diagonal.min(-1) > 1e-12 * diagonal.max(-1)
    triangle = np.where(is_regular[:, None, None], triangle, np.eye(triangle.shape[-1]))
    solution[:, used] = np.linalg.solve(triangle, np.einsum("rpk,rp->rk", q, y)[..., None])[..., 0]
    squares = np.square(y - np.einsum("rk,rkp->rp", solution, full)).sum(-1)
    return solution, np.where(is_regular & (solution >= 0).all(-1), squares, np.inf)


def _search_grid(log_u: Values, log_v: Values, y: Values) -> Values:
    """Return the exponents (rows, 2) of the grid with the least squares, by sums of products alone."""
    powers_u, powers_v = (np.exp(-_GRID[:, None] * log) for log in (log_u, log_v))
    best = [
        np.argmin(_sum_grid_squares(powers_u, powers_v, y[start : start + _CHUNK]), -1)
        for start in range(0, len(y), _CHUNK)
    ]
    place = np.concatenate(best)
    return np.stack([_GRID[place // len(_GRID)], _GRID[place % len(_GRID)]], -1)


def _sum_grid_squares(powers_u: Values, powers_v: Values, y: Values) -> Values:
    """Return what non-negative least squares leave of y (rows, points) at each pair of exponents, (rows, pairs)."""
    shape = (len(y), len(powers_u), len(powers_v))
    least = np.full(shape, np.inf)
    for with_constant in (True, False):
        mean = y.mean(-1, keepdims=True) if with_constant else np.zeros((len(y), 1))
        mean_u, mean_v = (with_constant * p.mean(-1, keepdims=True) for p in (powers_u, powers_v))
        left, first, second = y - mean, powers_u - mean_u, powers_v - mean_v
        total = np.square(left).sum(-1)[:, None, None]
        uu, vv = np.square(first).sum(-1)[:, None], np.square(second).sum(-1)[None, :]
        uv, uy, vy = first @ second.T, (left @ first.T)[:, :, None], (left @ second.T)[:, None, :]
        determinant = np.maximum(uu * vv - uv**2, 1e-300)
        both = (uy * vv - vy * uv) / determinant, (vy * uu - uy * uv) / determinant
        for a, b in (both, (uy / uu, 0 * vy), (0 * uy, vy / vv), (0 * uy, 0 * vy)):
            constant = mean[:, :, None] - a * mean_u - b * mean_v.T if with_constant else 0.0
            squares = total - 2 * (a * uy + b * vy) + a * a * uu + 2 * a * b * uv + b * b * vv
            is_allowed = (a >= 0) & (b >= 0) & (np.asarray(constant) >= 0)
            least = np.minimum(least, np.where(is_allowed, squares, np.inf))
    return least.reshape(len(y), -1)


def _project(log_u: Values, log_v: Values, exponents: Values, y: Values) -> tuple[Values, Values]:
    """Return E, A, B (rows, 3) and residuals (rows, points) at given exponents."""
    columns = np.stack([np.exp(-exponents[:, :1] * log_u), np.exp(-exponents[:, 1:] * log_v)], 1)
    linear = solve_nonnegative(columns, y)
    return linear, y - linear[:, :1] - np.einsum("rk,rkp->rp", linear[:, 1:], columns)


def _find_step(
    log_u: Values, log_v: Values, theta: Values, linear: Values, residual: Values, damping: Values
) -> Values:
    """Return the Levenberg-Marquardt step of the logarithms of the exponents; none against a bound."""
    exponents = np.exp(theta)
    columns = [
        np.ones_like(residual),
        *(np.exp(-e[:, None] * x) for e, x in zip(exponents.T, (log_u, log_v), strict=True)),
    ]
    slopes = np.stack(
        [
            -linear[:, k + 1, None] * exponents[:, k, None] * x * columns[k + 1]
            for k, x in enumerate((log_u, log_v))
        ],
        1,
    )
    used: list[Values] = []
    for k, column in enumerate(columns):
        rest = _remove(column, used)
        length = np.sqrt(np.square(rest).sum(-1, keepdims=True))
        used.append(np.where((linear[:, k, None] > 0) & (length > 0), rest / np.maximum(length, 1e-300), 0))
    slopes = np.stack([_remove(slopes[:, k], used) for k in range(2)], 1)
    gradient = np.einsum("rkp,rp->rk", slopes, residual)  # of the fit's improvement
    edge = np.log(EXPONENT_BOUNDS)
    is_free = ~(((theta <= edge[0]) & (gradient < 0)) | ((theta >= edge[1]) & (gradient > 0)))
    slopes, gradient = slopes * is_free[..., None], gradient * is_free
    normal = np.einsum("rkp,rlp->rkl", slopes, slopes)
    scale = np.einsum("rkk->rk", normal)
    scale = np.maximum(scale, 1e-12 * scale.max(-1, keepdims=True) + 1e-300)
    normal = normal + (damping[:, None] * scale)[..., None] * np.eye(2)
    step: Values = np.linalg.solve(normal / scale[..., None], (gradient / scale)[..., None])[..., 0]
    return np.clip(step, -1, 1)


def _remove(vector: Values, directions: list[Values]) -> Values:
    """Return vectors (rows, points) without their parts along orthogonal directions of length 1 or 0."""
    for direction in directions:
        vector = vector - direction * (direction * vector).sum(-1, keepdims=True)
    return vector
