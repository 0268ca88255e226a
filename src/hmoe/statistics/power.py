"""What a number of paired repetitions can show: the power of the paired t test, exactly.

With s, the spread that is estimated, the t test of n pairs at a level rejects where |mean| > q s / sqrt(n). Given s,
that is a tail of the normal distribution; averaged over the distribution of s it is a tail of the noncentral t one.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from hmoe.errors import ConfigError
from hmoe.statistics.student_t import compute_t_quantile

POWER, LEVEL = 0.8, 0.05
MOST_PAIRS = 10_000
_NODES = 400  # of Simpson's rule over the estimated spread: an error below 1e-7
_REACH = 9.0  # standard deviations of the estimated spread that are summed to either side
_BISECTIONS = 50


@dataclass(frozen=True)
class Spread:
    """Standard deviation of differences between pairs.

    Attributes:
        value: in the unit of the differences.
        low, high: ends of its chi-square interval; None where it was assumed.
        num_pairs: that it was measured with, as if in one cell; None where it was assumed.
    """

    value: float
    low: float | None = None
    high: float | None = None
    num_pairs: int | None = None


@dataclass(frozen=True)
class PowerAnalysis:
    """What paired repetitions can show, and how rough that is; the ends are those of the spread's interval.

    Attributes:
        spread: of the differences.
        num_pairs: planned or run.
        power: probability to show a true difference that is meant.
        level: two-sided level of the test.
        detectable: smallest true difference that `num_pairs` show with `power`; None with fewer than two.
        detectable_low, detectable_high: the same at the ends of the spread's interval.
        difference: whose number of pairs is asked for.
        pairs_needed: to show `difference` with `power`; None if more than 10,000.
        pairs_needed_low, pairs_needed_high: at the ends of the spread's interval; None if not known or more.
    """

    spread: Spread
    num_pairs: int
    power: float
    level: float
    detectable: float | None
    detectable_low: float | None
    detectable_high: float | None
    difference: float
    pairs_needed: int | None
    pairs_needed_low: int | None
    pairs_needed_high: int | None


def measure_spread(*cells: Sequence[float], confidence: float = 0.95) -> Spread | None:
    """Return the standard deviation of differences around the means of their cells, with its chi-square interval.

    f s^2 / sigma^2 is chi-square distributed with f degrees of freedom for normal differences: one fewer than there
    are in each cell, summed. None without any, or where they do not vary, which says nothing of how others would.

    Args:
        cells: differences that have one mean each; one cell is a plain standard deviation.
        confidence: of the interval.
    """
    from scipy import stats  # noqa: PLC0415 - optional extra

    degrees = sum(len(cell) - 1 for cell in cells)
    if degrees < 1:
        return None
    squares = sum((len(cell) - 1) * statistics.variance(cell) for cell in cells if len(cell) > 1)
    value = math.sqrt(squares / degrees)
    if value <= 1e-12 * max(abs(difference) for cell in cells for difference in cell):
        return None
    beyond = (1 - confidence) / 2
    ends = [
        value * math.sqrt(degrees / float(stats.chi2.isf(tail, degrees))) for tail in (beyond, 1 - beyond)
    ]
    return Spread(value, ends[0], ends[1], degrees + 1)


def analyze_power(
    spread: Spread, num_pairs: int, difference: float = 0.01, power: float = POWER, level: float = LEVEL
) -> PowerAnalysis:
    """Return what so many pairs can show and how many a difference needs, before (spread assumed) or after."""

    spreads = [spread.value, spread.low, spread.high]
    detectable = [
        None if s is None else find_detectable_difference(s, num_pairs, power, level) for s in spreads
    ]
    needed = [None if s is None else count_needed_pairs(difference, s, power, level) for s in spreads]
    return PowerAnalysis(
        spread=spread,
        num_pairs=num_pairs,
        power=power,
        level=level,
        detectable=detectable[0],
        detectable_low=detectable[1],
        detectable_high=detectable[2],
        difference=difference,
        pairs_needed=needed[0],
        pairs_needed_low=needed[1],
        pairs_needed_high=needed[2],
    )


def find_detectable_difference(
    spread: float, num_pairs: int, power: float = POWER, level: float = LEVEL
) -> float | None:
    """Return the smallest true difference that pairs show with this power; None for less than two pairs.

    Raises:
        ConfigError: if the spread is below 0, or not 0 < level < power < 1.
    """
    _check_rates(power, level)
    if not spread >= 0:
        raise ConfigError(f"spread = {spread}: must be at least 0", argument="spread")
    if num_pairs < 2:
        return None
    return spread * _find_unit_difference(num_pairs, power, level)


def count_needed_pairs(
    difference: float, spread: float, power: float = POWER, level: float = LEVEL
) -> int | None:
    """Return the fewest pairs that show a true difference with this power, two or more; None if above 10,000.

    Raises:
        ConfigError: if the difference or the spread is not above 0, or as for the detectable difference.
    """
    _check_rates(power, level)
    for name, value in (("difference", difference), ("spread", spread)):
        if not value > 0:
            raise ConfigError(f"{name} = {value}: must be above 0", argument=name)
    low, high = 1, 2
    while compute_power(difference, spread, high, level) < power:
        if high == MOST_PAIRS:
            return None
        low, high = high, min(2 * high, MOST_PAIRS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (middle, high) if compute_power(difference, spread, middle, level) < power else (low, middle)
        )
    return high


def compute_power(difference: float, spread: float, num_pairs: int, level: float = LEVEL) -> float:
    """Return how probable a t test of the pairs rejects zero, two-sided, if the true difference is this one."""
    degrees = num_pairs - 1
    shift = difference / spread * math.sqrt(num_pairs)
    quantile = compute_t_quantile(level, degrees)
    width = _REACH / math.sqrt(2 * degrees)
    # over the cube root of the estimated spread s, as for two pairs all happens at small s
    start, end = math.cbrt(max(0.0, 1 - width)), math.cbrt(1 + width)
    step = (end - start) / _NODES
    log_scale = math.log(2) + degrees / 2 * math.log(degrees / 2) - math.lgamma(degrees / 2)
    total = 0.0
    for k in range(_NODES + 1):
        root = start + k * step
        if root == 0:
            continue
        s = root**3  # estimated spread by the true one: a chi variable by the root of its degrees
        density = math.exp(log_scale + (degrees - 1) * math.log(s) - degrees * s * s / 2)
        tails = _compute_normal_tail(quantile * s - shift) + _compute_normal_tail(quantile * s + shift)
        weight = 1 if k in (0, _NODES) else 4 if k % 2 else 2
        total += weight * density * tails * 3 * root**2
    return min(1.0, total * step / 3)


@cache
def _find_unit_difference(num_pairs: int, power: float, level: float) -> float:
    """Return the detectable difference where the spread is 1."""
    low, high = 0.0, 1.0
    while compute_power(high, 1.0, num_pairs, level) < power:
        high *= 2
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        is_short = compute_power(middle, 1.0, num_pairs, level) < power
        low, high = (middle, high) if is_short else (low, middle)
    return (low + high) / 2


def _compute_normal_tail(x: float) -> float:
    return math.erfc(x / math.sqrt(2)) / 2


def _check_rates(power: float, level: float) -> None:
    if not 0 < level < 1:
        raise ConfigError(f"level = {level}: must be above 0 and below 1", argument="level")
    if not level < power < 1:
        raise ConfigError(
            f"power = {power}: must be above the level, {level:g}, and below 1", argument="power"
        )
