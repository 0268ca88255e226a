"""The law's fit as its slow definition: least squares of all five coefficients at once, from many starts."""

import itertools

import numpy as np
import numpy.typing as npt
from scipy import optimize

BOUNDS = (0.02, 2.0)


def fit_law_slowly(
    sizes: npt.NDArray[np.float64], tokens: npt.NDArray[np.float64], losses: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], float]:
    """E, A, B, alpha, beta (A and B for N and D in units of their geometric means), and the sum of squares."""
    u, v = sizes / np.exp(np.log(sizes).mean()), tokens / np.exp(np.log(tokens).mean())

    def residuals(c: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.array(
            [c[0] + c[1] * n ** -c[3] + c[2] * d ** -c[4] - y for n, d, y in zip(u, v, losses, strict=True)]
        )

    low, high = [0, 0, 0, BOUNDS[0], BOUNDS[0]], [np.inf, np.inf, np.inf, BOUNDS[1], BOUNDS[1]]
    best = None
    for alpha, beta, share in itertools.product((0.15, 0.6), (0.15, 0.6), (0.2, 0.7)):
        start = [share * losses.min(), *[(1 - share) * losses.min() / 2] * 2, alpha, beta]
        result = optimize.least_squares(
            residuals,
            start,
            bounds=(low, high),
            x_scale="jac",
            ftol=1e-15,
            xtol=1e-12,
            gtol=1e-14,
            max_nfev=200,
        )
        if best is None or result.cost < best.cost:
            best = result
    assert best is not None
    return best.x, 2 * best.cost
