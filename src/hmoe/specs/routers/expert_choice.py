"""Expert choice: an expert takes its best tokens of the batch, so it is not causal (Zhou et al. 2022).

The mathematics is `hmoe.model.routers.expert_choice`.
"""

from dataclasses import KW_ONLY, dataclass
from typing import Annotated, ClassVar, Literal

from hmoe.errors import ConfigError
from hmoe.specs.fields import Real
from hmoe.specs.routers.base import Noise, RouterSpec


@dataclass(frozen=True)
class ExpertChoice(RouterSpec):
    """Each expert takes its C most probable tokens of the batch, C = ceil(capacity_factor x T / E) (Zhou et al. 2022).

    A token gets 0 to E experts, with raw probabilities as gates. Not causal: whether a token is taken depends
    on later ones, so a language model trained so reads the future, and cannot generate.

    Attributes:
        capacity_factor: mean number of experts per token where capacity_by is "equal" (paper: 2).
        capacity_by: C equal, or such that every expert computes alike: ceil(capacity_factor x T x mean h / (E x h)).
        jitter: as in TopK.

    Raises:
        ConfigError: for a value out of range.
    """

    causal: ClassVar[bool] = False
    capacity_factor: Annotated[float, Real(1e6, zero=False)] = 1.0
    _: KW_ONLY
    capacity_by: Literal["equal", "compute"] = "equal"
    jitter: Annotated[float, Real(1, zero=True)] = 0.0
    name: Literal["expert_choice"] = "expert_choice"

    @property
    def causal_fault(self) -> str:
        """Return why a model with this router cannot generate."""
        return "experts choose among all tokens of a batch, later ones too"

    @property
    def title(self) -> str:
        """Return a name for people."""
        return f"expert choice {self.capacity_factor:g}"

    @property
    def noise(self) -> Noise:
        """Return what training draws."""
        return Noise(self.jitter)

    @property
    def takes_agreed_tokens(self) -> bool:
        """Return True: each expert takes a number of tokens that is known beforehand."""
        return True

    @property
    def constant_load(self) -> bool:
        """Return whether every expert takes equally many tokens, so that no loss need balance them."""
        return self.capacity_by == "equal"

    def count_experts_per_token(self, num_experts: int, training: bool = True) -> tuple[int, float, int]:
        """Return (fewest, expected, most) experts per token."""
        return 0, min(num_experts, self.capacity_factor), num_experts

    def describe_assumption(self, num_experts: int) -> str:
        """Return what a plan assumes of the experts that a token takes."""
        return f"expert choice, {self.capacity_factor:g} experts per token in the mean"

    def check_experts(self, num_experts: int) -> None:
        """Raise ConfigError if this router cannot serve so many experts."""
        if self.capacity_factor > num_experts:
            raise ConfigError(
                f"router.capacity_factor = {self.capacity_factor}, must be at most the number of experts, {num_experts}"
            )

    def check_zero_experts(self, true_gates: bool) -> None:
        """Raise ConfigError if experts without hidden units make no sense with this router."""
        raise ConfigError(
            "zero: has no place with expert_choice, whose experts take tokens whether they compute or not"
        )
