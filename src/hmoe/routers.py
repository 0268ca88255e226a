"""What a router does, as frozen values without torch; the maths is in `hmoe.model.router`."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from hmoe.errors import ConfigError

_FORBID_EXTRA = {"extra": "forbid"}  # read by pydantic when a recipe names a router


@dataclass(frozen=True)
class TopK:
    """Each token goes to its k most probable experts (HMoE eq 8; the paper uses k=2).

    Gates are renormalised over the chosen experts, or left as raw probabilities (OLMoE) with `renormalize=False`.

    Raises:
        ConfigError: if k < 1. That k is at most the number of experts is checked where experts are known.
    """

    k: int = 2
    renormalize: bool = True
    name: Literal["top_k"] = "top_k"
    __pydantic_config__: ClassVar = _FORBID_EXTRA

    def __post_init__(self) -> None:
        if type(self.k) is not int or self.k < 1:
            raise ConfigError(f"router.k = {self.k!r}, must be an integer of at least 1")

    def num_experts(self, num_experts: int) -> tuple[int, int, int]:
        """(fewest, expected, most) experts per token, of `num_experts`."""
        k = min(self.k, num_experts)
        return k, k, k

    def check(self, num_experts: int) -> None:
        """Raise ConfigError if this router cannot serve `num_experts` experts."""
        if self.k > num_experts:
            raise ConfigError(f"router.k = {self.k}, must be at most the number of experts, {num_experts}")


@dataclass(frozen=True)
class TopP:
    """Each token goes to its most probable experts until their sum reaches p (HMoE eq 9-11; the paper uses 0.6).

    The expert that crosses p is included, so there is always one; p = 1 selects all experts. Gates as in TopK.

    Raises:
        ConfigError: if p is not in (0, 1].
    """

    p: float = 0.6
    renormalize: bool = True
    name: Literal["top_p"] = "top_p"
    __pydantic_config__: ClassVar = _FORBID_EXTRA

    def __post_init__(self) -> None:
        if isinstance(self.p, bool) or not 0 < self.p <= 1:
            raise ConfigError(f"router.p = {self.p}, must be in (0, 1]")

    def num_experts(self, num_experts: int) -> tuple[int, int, int]:
        """(fewest, expected, most) experts per token; expected is for a uniform router: ceil(p x experts)."""
        return 1, max(1, math.ceil(self.p * num_experts - 1e-9)), num_experts

    def check(self, num_experts: int) -> None:
        """Every top-p router can serve any number of experts."""


Router = TopK | TopP
