"""Non-negative least squares in closed form against scipy's, and the whole search against a slow one."""

import numpy as np
import pytest
from scipy import optimize

from hmoe.statistics.variable_projection import EXPONENT_BOUNDS, fit_two_powers, solve_nonnegative
from tests.statistics.law_oracle import fit_law_slowly


def test_nonnegative_least_squares_are_scipy_s() -> None:
    generator = np.random.default_rng(0)
    num_zeros = 0
    for num_points in (3, 8, 30):
        columns = generator.random((200, 2, num_points)) + 0.1
        y = generator.normal(0.3, 1.0, (200, num_points))
        for solution, pair, values in zip(solve_nonnegative(columns, y), columns, y, strict=True):
            expected, _norm = optimize.nnls(np.stack([np.ones(num_points), *pair], -1), values)
            assert solution == pytest.approx(expected, abs=1e-9)
            num_zeros += int((expected == 0).sum())
    assert 400 < num_zeros < 1600


def test_the_search_is_never_behind_a_slow_one_from_many_starts() -> None:
    """Noise from little to so much that exponents run to their edges and E to 0."""
    generator = np.random.default_rng(1)
    u = np.repeat([-1.0, -0.3, 0.4, 0.9], 3)
    v = np.tile([-1.2, 0.1, 1.1], 4) - u
    noise = np.array([0.003, 0.02, 0.1, 0.3])
    truth = 1.5 + 1.2 * np.exp(-0.35 * u) + np.exp(-0.4 * v)
    y = truth + noise[:, None] * generator.standard_normal((4, 12))
    fit = fit_two_powers(u, v, y)
    assert fit.converged.all()
    for row in range(4):
        coefficients, squares = fit_law_slowly(np.exp(u), np.exp(v), y[row])
        assert fit.squares[row] <= squares * (1 + 1e-6)
        if row < 2:
            assert [*fit.linear[row], *fit.exponents[row]] == pytest.approx(coefficients, rel=2e-3)


def test_exponents_stay_in_their_bounds_and_come_to_rest_there() -> None:
    u, v = np.repeat([-1.0, 0.0, 1.0], 3), np.tile([-1.0, 0.0, 1.0], 3)
    steep, flat = np.exp(-4.0 * u) + np.exp(-0.3 * v), 30 - 0.1 * u - 0.2 * v
    fit = fit_two_powers(u, v, np.stack([steep, flat]))
    assert fit.converged.all()
    assert fit.exponents[0, 0] == pytest.approx(EXPONENT_BOUNDS[1])
    assert fit.exponents[1] == pytest.approx([EXPONENT_BOUNDS[0]] * 2)
    assert (fit.linear[1] >= 0).all()


def test_rows_do_not_depend_on_each_other() -> None:
    generator = np.random.default_rng(2)
    u, v = generator.normal(size=20), generator.normal(size=20)
    y = 2 + np.exp(-0.3 * u) + np.exp(-0.5 * v) + 0.02 * generator.standard_normal((300, 20))
    together = fit_two_powers(u, v, y)
    alone = fit_two_powers(u, v, y[177:178])
    assert together.exponents[177] == pytest.approx(alone.exponents[0], rel=1e-6)
