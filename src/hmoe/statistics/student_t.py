"""Student's t distribution for whole degrees of freedom, in closed form: exact for few seeds, and without scipy."""

import math

from hmoe.errors import ConfigError

_BISECTIONS = 200


def compute_t_tail(t: float, degrees: int) -> float:
    """Return the probability that |T| is above `t` in absolute value, for T with so many degrees of freedom.

    For whole degrees of freedom it is a finite sum (Abramowitz and Stegun 26.7.3 and 26.7.4). Tails far below 1e-12
    are lost to rounding and come out as about 0.

    Raises:
        ConfigError: if `degrees` is below 1.
    """
    if degrees < 1:
        raise ConfigError(f"degrees = {degrees}: must be at least 1")
    if math.isinf(t):
        return 0.0
    angle = math.atan(abs(t) / math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    term, total = (cosine, cosine) if degrees % 2 else (1.0, 1.0)
    for k in range(3 if degrees % 2 else 2, degrees - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    odd = 2 / math.pi * (angle + (sine * total if degrees > 1 else 0.0))
    inside = odd if degrees % 2 else sine * total
    return min(1.0, max(0.0, 1.0 - inside))


def compute_t_quantile(tail: float, degrees: int) -> float:
    """Return the t above which |T| lies with probability `tail`: 0.05 gives that of a 95% interval.

    Raises:
        ConfigError: unless `tail` is above 0 and at most 1.
    """
    if not 0 < tail <= 1:
        raise ConfigError(f"tail = {tail}: must be above 0 and at most 1")
    low, high = 0.0, 1.0
    while compute_t_tail(high, degrees) > tail:
        high *= 2
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if compute_t_tail(middle, degrees) > tail else (low, middle)
        if high - low <= 1e-14 * high:
            break
    return (low + high) / 2
