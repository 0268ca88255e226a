"""Top-p: a token takes its best experts until their probabilities reach p (HMoE eq 9-11; Huang et al. 2024).

The mathematics is `hmoe.model.routers.top_p`.
"""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Literal

from hmoe.errors import ConfigError
from hmoe.specs.fields import Real
from hmoe.specs.routers.base import Noise, RouterSpec


@dataclass(frozen=True)
class TopP(RouterSpec):
    """Each token goes to its most probable experts until their sum reaches p (HMoE eq 9-11; the paper uses 0.6).

    The expert that crosses p is included, so there is always one; p = 1 selects all experts.

    Attributes:
        p: sum of probabilities to reach.
        renormalize: gates are divided by their sum over the chosen experts; False leaves them raw (Huang et al. 2024).
        jitter: as in TopK.

    Raises:
        ConfigError: if p is not in (0, 1].
    """

    p: Annotated[float, Real(1, zero=False)] = 0.6
    _: KW_ONLY
    renormalize: bool = True
    jitter: Annotated[float, Real(1, zero=True)] = 0.0
    name: Literal["top_p"] = "top_p"

    @property
    def title(self) -> str:
        """Return a name for people."""
        return f"top-p {self.p}"

    @property
    def noise(self) -> Noise:
        """Return what training draws."""
        return Noise(self.jitter)

    @property
    def threshold(self) -> float | None:
        """Return the sum of probabilities that a token's experts reach."""
        return self.p

    @property
    def sum_to_one_remedy(self) -> str:
        """Return the overrides of a recipe that make the gates sum to 1."""
        return "model.moe.router.renormalize=true"

    def has_constant_gates(self, num_experts: int) -> bool:
        """Return whether no token gets a second expert: the best of E probabilities is at least 1 / E."""
        return self.renormalize and 1 < num_experts <= 1 / self.p

    def describe_remedy(self, num_experts: int) -> str:
        """Return which change lets a router with constant gates learn from the text."""
        return f"router.p above {1 / num_experts:.3g} or router.renormalize = false"

    def count_experts_per_token(self, num_experts: int, training: bool = True) -> tuple[int, int, int]:
        """Return (fewest, expected, most) experts per token; a uniform router gives ceil(p x experts)."""
        return 1, max(1, math.ceil(self.p * num_experts - 1e-9)), num_experts

    def describe_assumption(self, num_experts: int) -> str:
        """Return what a plan assumes of the experts that a token takes."""
        _, expected, _ = self.count_experts_per_token(num_experts)
        return (
            f"top-p {self.p}, uniform router: {expected} experts; "
            "training moves it, see activated_parameters in metrics"
        )

    def check_zero_experts(self, true_gates: bool) -> None:
        """Raise ConfigError if experts without hidden units make no sense with this router."""
        if true_gates and not self.renormalize:
            raise ConfigError("zero.true_gates has no effect on gates that are raw or rectified; remove it")
