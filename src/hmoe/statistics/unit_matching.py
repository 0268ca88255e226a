"""How alike two networks' hidden units are when nothing says which unit of one is which of the other."""

from typing import Any

import numpy as np
import numpy.typing as npt

Table = npt.NDArray[Any]


def match_units(first: Table, second: Table, most_units: int | None = None) -> float:
    """Return the mean cosine of units under the best matching, over the units of the smaller network.

    Args:
        first, second: units in the rows; columns are weights, the same ones in both. A unit of zeros has cosine 0.
        most_units: of the smaller network, evenly spread; they are matched with any units of the other. None: all.

    Returns:
        The mean, NaN if a network has no units.
    """
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415 - an extra

    smaller, larger = sorted((first, second), key=len)
    if not len(smaller):
        return float("nan")
    if most_units is not None and len(smaller) > most_units:
        smaller = smaller[np.arange(most_units) * len(smaller) // most_units]
    cosines = _normalise(smaller) @ _normalise(larger).T
    rows, columns = linear_sum_assignment(cosines, maximize=True)
    return float(cosines[rows, columns].mean(dtype=np.float64))


def _normalise(units: Table) -> Table:
    norms = np.linalg.norm(units, axis=1, keepdims=True)
    scaled: Table = np.divide(units, norms, out=np.zeros_like(units), where=norms > 0)
    return scaled
