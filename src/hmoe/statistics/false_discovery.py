"""Benjamini and Hochberg's control of the false discovery rate."""

from typing import Any

import numpy as np
import numpy.typing as npt

from hmoe.errors import ConfigError


def adjust_false_discovery(tails: npt.NDArray[Any], num_tests: int | None = None) -> npt.NDArray[np.float64]:
    """Return q: the least rate of false discoveries at which each test is still a discovery.

    Benjamini and Hochberg 1995: of the sorted p values q is the least p times tests / rank of this and all larger ones.
    Tests with large p may be left out as long as they are counted in `num_tests`: with all p up to a rate given, the
    discoveries at that rate are those of all tests, and so are their q.

    Raises:
        ConfigError: if there are more p values than tests.
    """
    tails = np.asarray(tails, np.float64)
    num_tests = len(tails) if num_tests is None else num_tests
    if num_tests < len(tails):
        raise ConfigError(f"num_tests = {num_tests}: must be at least {len(tails)}, the p values given")
    order = np.argsort(tails, kind="stable")
    scaled = tails[order] * num_tests / np.arange(1, len(tails) + 1)
    adjusted = np.empty(len(tails))
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1)
    return adjusted
