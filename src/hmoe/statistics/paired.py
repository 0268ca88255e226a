"""Differences taken pair by pair, several against one baseline, with verdicts that hold together."""

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hmoe.statistics.intervals import MeanInterval, compute_mean_interval

_MOST_EXACT = 16  # pairs, up to which every flip of signs is tried
_RANDOM_FLIPS = 100_000


@dataclass(frozen=True)
class PairedDifference:
    """How far something is from the baseline, by pairs.

    Attributes:
        interval: mean of the differences, with an interval wide enough for several comparisons.
        confidence: of that interval alone: 95% for one comparison, more among several.
        adjusted_tail: two-sided p of the t test after Holm's correction; None for a single pair.
        sign_flip: exact p of the sign-flip permutation test, not corrected; None for a single pair.
    """

    interval: MeanInterval
    confidence: float
    adjusted_tail: float | None
    sign_flip: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        low, high = self.interval.low, self.interval.high
        return low is not None and high is not None and (low > 0 or high < 0)


def compare_paired(
    differences: Mapping[str, Sequence[float]], confidence: float = 0.95
) -> dict[str, PairedDifference]:
    """Return each comparison's mean difference with Holm-corrected interval and p.

    The k-th smallest p of m is tested at (1 - confidence) / (m - k + 1), and its interval has that level; from the
    first that does not pass on, all others keep the level of that step, so an interval excludes zero exactly where
    Holm's procedure rejects. Where true differences are zero, at most 1 - confidence of experiments have an interval
    that excludes it; intervals of differences that are not zero may together miss them more often. Comparisons of a
    single pair, or of pairs that do not vary, have no interval and take no part.

    Args:
        differences: of each comparison, one for each pair; none may be empty.
        confidence: of all verdicts together.
    """
    error = 1 - confidence
    tails = {name: compute_mean_interval(values).tail for name, values in differences.items()}
    known = sorted((tail, name) for name, tail in tails.items() if tail is not None)
    levels: dict[str, float] = {}
    level, passed = error, True
    for place, (tail, name) in enumerate(known):
        if passed:
            level = error / (len(known) - place)
            passed = tail <= level
        levels[name] = level
    adjusted = adjust_holm({name: tail for tail, name in known})
    return {
        name: PairedDifference(
            compute_mean_interval(values, 1 - levels.get(name, error)),
            1 - levels.get(name, error),
            adjusted.get(name),
            compute_sign_flip(values) if len(values) > 1 else None,
        )
        for name, values in differences.items()
    }


def adjust_holm(tails: Mapping[str, float]) -> dict[str, float]:
    """Return p values after Holm's correction: below 5% where his procedure rejects at 5% for all together."""
    adjusted: dict[str, float] = {}
    largest = 0.0
    for place, (name, tail) in enumerate(sorted(tails.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, tail * (len(tails) - place)))
        adjusted[name] = largest
    return adjusted


def compute_sign_flip(differences: Sequence[float]) -> float:
    """Return the share of all flips of signs whose mean is at least as far from zero as the mean that was seen.

    Exact up to 16 differences; above that, 100,000 random flips (always the same ones), the one that was seen included.
    Three differences cannot give less than 0.25, six not less than 0.03.
    """
    seen = abs(math.fsum(differences))
    close = seen * (1 - 1e-12)
    if len(differences) <= _MOST_EXACT:
        flips = itertools.product((1, -1), repeat=len(differences))
        sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in flips]
        return sum(total >= close for total in sums) / len(sums)
    generator = random.Random(0)
    extreme = sum(
        abs(sum(d if generator.random() < 0.5 else -d for d in differences)) >= close
        for _ in range(_RANDOM_FLIPS)
    )
    return (extreme + 1) / (_RANDOM_FLIPS + 1)
