"""Expert widths: how a total of hidden units is shared among experts of different size (HMoE 2.3.2).

Every function returns widths in ascending order whose sum is exactly `total`.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal

from hmoe.errors import ConfigError
from hmoe.specs.fields import Range, Spec, Whole

# Exact fractions keep 23/9 from becoming 2.5555555555555554: the paper's widths come out as integers.
_DENOMINATOR = 10**9
_LARGEST_RATIO = 10**6


def arithmetic(total: int, n: int, ratio: float = 23 / 9, multiple: int = 1) -> tuple[int, ...]:
    """Return widths in arithmetic progression, the largest `ratio` times the smallest.

    The paper's main setting {9, 11, ..., 23} is n=8, ratio=23/9; figure 10 varies `ratio`.

    Args:
        total: hidden units in the layer, a multiple of `multiple`.
        n: number of experts.
        ratio: largest width / smallest width, at least 1.
        multiple: every width is a multiple of this; the sum stays exact by largest remainder.

    Raises:
        ConfigError: if `total` cannot be shared so.
    """
    _check(total, n, multiple)
    step = (_ratio(ratio) - 1) / max(n - 1, 1)
    return _share(total, [1 + step * i for i in range(n)], multiple)


def geometric(total: int, n: int, ratio: float = 128, multiple: int = 1) -> tuple[int, ...]:
    """Return widths in geometric progression; the paper's {1, 2, 4, ..., 128} is n=8, ratio=128.

    Arguments and errors as in `arithmetic`. An expert never gets less than one `multiple`.
    """
    _check(total, n, multiple)
    _ratio(ratio)
    powers = [float(ratio) ** (i / max(n - 1, 1)) for i in range(n)]
    return _share(total, [Fraction(round(power * _DENOMINATOR), _DENOMINATOR) for power in powers], multiple)


def hybrid(total: int, n: int, multiple: int = 1) -> tuple[int, ...]:
    """Return widths 1 : 2 : 4 for n/2, n/4 and n/4 experts; the paper's {1, 1, 1, 1, 2, 2, 4, 4} is n=8."""
    if n < 4 or n % 4:
        nearest = max(4, round(n / 4) * 4)
        raise ConfigError(f"hybrid: n = {n}, must be a positive multiple of 4; nearest is {nearest}")
    _check(total, n, multiple)
    return _share(total, [Fraction(s) for s in [1] * (n // 2) + [2] * (n // 4) + [4] * (n // 4)], multiple)


def equal(total: int, n: int) -> tuple[int, ...]:
    """Return widths all the same, or at most one unit apart where `n` does not divide `total`."""
    _check(total, n, 1)
    return _share(total, [Fraction(1)] * n, 1)


def share_in_proportion(total: int, shares: Sequence[int], multiple: int = 1) -> tuple[int, ...]:
    """Return widths in proportion to ascending shares, such as measured ones.

    Arguments and errors as in `arithmetic`.
    """
    _check(total, len(shares), multiple)
    return _share(total, [Fraction(share) for share in shares], multiple)


@dataclass(frozen=True)
class WidthRule(Spec):
    """Expert widths by a rule, as a recipe gives them.

    Attributes:
        shape: which of the functions in `hmoe.specs.widths`.
        total: hidden units of all experts of a layer together.
        experts: number of experts.
        ratio: largest / smallest width; arithmetic 23/9, geometric 128.
        multiple: every width is a multiple of this.

    Raises:
        ConfigError: if `total` cannot be shared so.
    """

    shape: Literal["arithmetic", "geometric", "hybrid", "equal"]
    total: Annotated[int, Whole(1, 10**8)]
    experts: Annotated[int, Whole(1, 4096)]
    ratio: Annotated[float | None, Range()] = None
    multiple: Annotated[int, Whole(1, 4096)] = 1
    section: ClassVar[str] = "widths"

    def check_fields(self) -> None:
        """Raise ConfigError for fields that do not fit together."""
        if self.shape in ("hybrid", "equal"):
            self.refuse_unused(f"with {self.shape} widths", "ratio")
        if self.shape == "equal":
            self.refuse_unused("with equal widths", "multiple")
        self.expand()

    @functools.lru_cache(maxsize=256)  # noqa: B019 - a frozen value; read several times per training step
    def expand(self) -> tuple[int, ...]:
        """Return the widths, ascending, of exact sum `total`."""
        if self.shape == "equal":
            return equal(self.total, self.experts)
        if self.shape == "hybrid":
            return hybrid(self.total, self.experts, self.multiple)
        options: dict[str, Any] = {} if self.ratio is None else {"ratio": self.ratio}
        rule = arithmetic if self.shape == "arithmetic" else geometric
        return rule(self.total, self.experts, multiple=self.multiple, **options)


def _ratio(ratio: float) -> Fraction:
    if not 1 <= ratio <= _LARGEST_RATIO:
        raise ConfigError(f"widths: ratio = {ratio}, must be from 1 (equal widths) to {_LARGEST_RATIO}")
    return Fraction(ratio).limit_denominator(_DENOMINATOR)


def _check(total: int, n: int, multiple: int) -> None:
    if n < 1 or multiple < 1:
        raise ConfigError(f"widths: {n} experts, multiple {multiple}; both must be at least 1")
    if total % multiple or total < n * multiple:
        nearest = max(n, round(total / multiple)) * multiple
        raise ConfigError(
            f"widths: total = {total} for {n} experts, must be a multiple of {multiple} and at least {n * multiple}; "
            f"nearest is {nearest}"
        )


def _share(total: int, shares: Sequence[Fraction], multiple: int) -> tuple[int, ...]:
    """Share by largest remainder: floor every quota, then give one more unit to the largest remainders."""
    n = len(shares)
    units = total // multiple
    quotas = _quotas(units, shares)
    floors = [int(quota) for quota in quotas]
    # Ties go to the larger expert, which keeps the widths ascending.
    order = sorted(range(n), key=lambda i: (quotas[i] - floors[i], i), reverse=True)
    for i in order[: units - sum(floors)]:
        floors[i] += 1
    return tuple(floor * multiple for floor in floors)


def _quotas(units: int, shares: Sequence[Fraction]) -> list[Fraction]:
    """Return proportional quotas in which nobody has less than one unit (`shares` ascending)."""
    rest = sum(shares, Fraction(0))
    for small, smallest in enumerate(shares):
        if smallest * (units - small) >= rest:
            return [Fraction(1)] * small + [share * (units - small) / rest for share in shares[small:]]
        rest -= smallest
    return [Fraction(1)] * len(shares)
