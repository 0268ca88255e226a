"""Rates of successes that come in groups which are not independent within, such as tokens of documents."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class GroupedCounts:
    """Successes among trials, with the sums over groups from which their dependence shows; all shapes broadcast.

    With k successes among n trials of a group, the last axis being of kinds whose groups behave alike:

    Attributes:
        successes: sum k.
        trials: sum n, at least 1.
        squares: sum k^2.
        products: sum k n.
        trial_squares: sum n^2.
        num_groups: groups that have trials, or fewer where this is not known.
    """

    successes: npt.NDArray[Any]
    trials: npt.NDArray[Any]
    squares: npt.NDArray[Any]
    products: npt.NDArray[Any]
    trial_squares: npt.NDArray[Any]
    num_groups: npt.NDArray[Any]

    @cached_property
    def rate(self) -> Values:
        """Successes per trial."""
        rate: Values = self.successes / self.trials
        return rate

    @cached_property
    def effective_groups(self) -> Values:
        """How many groups of equal size would weigh the same: (sum n)^2 / sum n^2, never more than the groups."""
        groups: Values = np.square(np.asarray(self.trials, float)) / self.trial_squares
        return groups

    @cached_property
    def variance(self) -> Values:
        """Variance of the rate between groups, by linearisation of the ratio; infinite for a single group.

        sum (k - rate n)^2 / (sum n)^2, times g / (g - 1) for g groups (Cochran, Sampling Techniques, 6.3).
        """
        groups = np.maximum(self.num_groups, np.ceil(self.effective_groups - 1e-9))
        residuals = (
            self.squares - 2 * self.rate * self.products + np.square(self.rate) * self.trial_squares
        ) / np.square(np.asarray(self.trials, float))
        many = groups > 1
        factor = np.where(many, groups / np.maximum(groups - 1, 1), np.inf)
        return np.where(many, np.maximum(residuals, 0) * np.where(many, factor, 1), np.inf)

    @cached_property
    def correlation(self) -> Values:
        """Of two trials of a kind in the same group, pooled over the last axis, at least 0; the axis is kept.

        A single kind whose trials all succeed shows no variance however much its groups have in common; the others do.
        """
        plain = self.rate * (1 - self.rate)
        is_known = np.isfinite(self.variance)
        variance = np.where(is_known, self.variance, 0) * np.square(np.asarray(self.trials, float))
        excess = np.where(is_known, variance - plain * self.trials, 0).sum(-1, keepdims=True)
        room = np.where(is_known, plain * (self.trial_squares - self.trials), 0).sum(-1, keepdims=True)
        correlation: Values = np.clip(
            np.divide(excess, room, out=np.zeros_like(excess), where=room > 0), 0, 1
        )
        return correlation

    @cached_property
    def pooled_effect(self) -> Values:
        """Factor by which the correlation of all kinds makes the variance larger than the binomial one."""
        effect: Values = 1 + self.correlation * (self.trial_squares / self.trials - 1)
        return effect

    @cached_property
    def effect(self) -> Values:
        """The larger of the pooled factor and the kind's own one, at least 1."""
        plain = self.rate * (1 - self.rate) / self.trials
        own = np.divide(self.variance, plain, out=np.ones(plain.shape), where=plain > 0)
        effect: Values = np.maximum(np.maximum(own, self.pooled_effect), 1)
        return effect

    def select(self, *index: npt.NDArray[np.int64]) -> "GroupedCounts":
        """Return some entries of all shapes, with the effects that they have among all."""
        shape = np.shape(self.successes)
        names = ("successes", "trials", "squares", "products", "trial_squares", "num_groups")
        selection = GroupedCounts(*(np.broadcast_to(getattr(self, name), shape)[index] for name in names))
        for name in ("correlation", "pooled_effect", "effect"):
            selection.__dict__[name] = np.broadcast_to(getattr(self, name), shape)[index]
        return selection


def compute_excess_tails(counts: GroupedCounts, rate: Values, rate_variance: Values) -> Values:
    """Return one-sided p values of rates above a given one, which hold if trials of a group depend on each other.

    The largest of three: the binomial test; the binomial test of as many independent trials as tell the same
    (successes and trials divided by the design effect, as Korn and Graubard 1998 do for intervals); and Student's t
    by the larger of the variance between groups and the pooled one, with the effective groups less one as degrees of
    freedom. 1 where the rate is not above the given one, or all is of a single group.

    Args:
        counts: of the same shape as the rates.
        rate: that of the null, above 0 and below 1.
        rate_variance: of `rate`, which is estimated itself.
    """
    from scipy import special, stats  # noqa: PLC0415 - an extra

    degrees = counts.effective_groups - 1
    is_tested = (degrees > 1e-9) & (counts.rate > rate) & np.isfinite(counts.effect)
    effect = np.where(is_tested, counts.effect, 1)
    successes = np.where(is_tested, counts.successes, 1)
    failures = np.where(is_tested, counts.trials, 1) - successes
    binomial = special.betainc(successes, failures + 1, rate)  # probability of as many successes or more
    fewer = special.betainc(successes / effect, failures / effect + 1, rate)
    pooled = rate * (1 - rate) * counts.pooled_effect / counts.trials
    error = np.sqrt(np.maximum(counts.variance, pooled) + rate_variance)
    between = stats.t.sf((counts.rate - rate) / error, np.where(is_tested, degrees, 1))
    return np.where(is_tested, np.maximum(np.maximum(binomial, fewer), between), 1.0)


def estimate_ratio_interval(
    counts: GroupedCounts, rate: Values, rate_variance: Values, degrees: int, confidence: float = 0.95
) -> tuple[Values, Values]:
    """Return the ends of the interval of the ratio of rates to another rate that is estimated too.

    That of the counts' own rate is Korn and Graubard's (1998): Clopper and Pearson's of trials divided by the design
    effect and by the square of t / z, t with the effective groups less one as degrees of freedom. That of the other
    is Student's t on the scale of logarithms, and both distances add up by squares (Zou and Donner 2008), as if the
    rates were independent, which is too wide for parts of the other's trials. The ends are 0 and infinity where all
    is of a single group.

    Args:
        counts: of the same shape as the rates.
        rate: of the other, above 0.
        rate_variance: of `rate`.
        degrees: of freedom of `rate_variance`.
        confidence: of the interval.
    """
    from scipy import special, stats  # noqa: PLC0415 - an extra

    beyond = (1 - confidence) / 2
    is_known = (counts.effective_groups - 1 > 1e-9) & np.isfinite(counts.effect) & np.isfinite(rate_variance)
    quantile = stats.t.isf(beyond, np.where(is_known, counts.effective_groups - 1, 1))
    shrink = np.where(is_known, counts.effect, 1) * np.square(
        np.maximum(quantile / stats.norm.isf(beyond), 1)
    )
    successes = counts.successes / shrink
    failures = (counts.trials - counts.successes) / shrink
    low = np.where(successes > 0, special.betaincinv(np.maximum(successes, 1e-300), failures + 1, beyond), 0)
    high = np.where(
        failures > 0, special.betaincinv(successes + 1, np.maximum(failures, 1e-300), 1 - beyond), 1
    )
    spread = stats.t.isf(beyond, max(degrees, 1)) * np.sqrt(np.where(is_known, rate_variance, 0)) / rate
    with np.errstate(divide="ignore", invalid="ignore"):
        below = np.hypot(np.log(counts.rate / low), spread)
        above = np.hypot(np.log(high / counts.rate), spread)
        ratio = counts.rate / rate
        ends = (
            ratio * np.exp(-below),
            np.where(ratio > 0, ratio * np.exp(above), high / rate * np.exp(spread)),
        )
    return (
        np.where(is_known & (counts.successes > 0), ends[0], 0.0),
        np.where(is_known, ends[1], np.inf),
    )
