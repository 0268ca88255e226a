"""What every kind of router says of itself, so that nobody needs to ask which kind it is."""

from typing import Any, ClassVar, NamedTuple, Self

from hmoe.errors import ConfigError
from hmoe.specs.fields import Spec


class Noise(NamedTuple):
    """Random numbers that training draws: a factor on the router's input, and Gumbel noise on later choices."""

    jitter: float = 0.0
    gumbel: bool = False


class BiasUpdate(NamedTuple):
    """How a bias per expert moves against its load: the step, and whether load is counted in tokens or in compute."""

    rate: float
    by_compute: bool


class RouterSpec(Spec):
    """Base of all routers; a subclass overrides what differs.

    Attributes:
        name: of the kind, as recipes write it.
        causal: a token's experts depend on it and on earlier tokens only; else the model cannot generate.
        renormalize: gates are divided by their sum over the chosen experts.
    """

    section: ClassVar[str] = "router"
    causal: ClassVar[bool] = True
    name: str
    renormalize: Any = False

    @property
    def title(self) -> str:
        """A name for people."""
        return self.name.replace("_", " ")

    @property
    def causal_fault(self) -> str:
        """Why a model with this router cannot generate, of one that is not causal."""
        return "a token's experts depend on tokens after it"

    @property
    def score_function(self) -> str:
        """What makes scores of logits: softmax over the experts, or sigmoid of each."""
        return "softmax"

    @property
    def noise(self) -> Noise:
        """What training draws."""
        return Noise()

    @property
    def needs_noise(self) -> bool:
        """Whether training draws random numbers."""
        return any(self.noise)

    @property
    def threshold(self) -> float | None:
        """The sum of probabilities that a token's experts reach, of a router with such a threshold."""
        return None

    @property
    def bias_update(self) -> BiasUpdate | None:
        """How this router's bias moves, of one that balances by a bias."""
        return None

    @property
    def uses_ranks(self) -> bool:
        """Whether it matters on which rank a token and an expert live."""
        return False

    @property
    def skips(self) -> bool:
        """Whether weak experts are left out in evaluation."""
        return False

    @property
    def takes_agreed_tokens(self) -> bool:
        """Whether each expert takes a number of tokens that is known beforehand."""
        return False

    @property
    def gates_sum_to_one(self) -> bool:
        """Whether a token's gates sum to 1."""
        return bool(self.renormalize)

    @property
    def sum_to_one_remedy(self) -> str:
        """Overrides of a recipe that make the gates sum to 1."""
        return "model.moe.router={name: top_k}"

    @property
    def constant_load(self) -> bool:
        """Whether every expert serves equally many tokens, whatever the router learns."""
        return False

    def describe_assumption(self, num_experts: int) -> str:
        """Return what a plan assumes of the experts that a token takes."""
        return f"{self.title}, every expert equally likely"

    def get_capacity(self, training: bool) -> float | None:
        """Return the factor of the most tokens that an expert may take; None: there is no limit."""
        return None

    @property
    def has_capacity(self) -> bool:
        """Whether experts may refuse tokens in training."""
        return self.get_capacity(training=True) is not None

    @property
    def batch_dependent(self) -> bool:
        """Whether in evaluation a token's experts depend on the other tokens of the batch."""
        return not self.causal or self.get_capacity(training=False) is not None

    def without_capacity(self) -> Self:
        """Return the same router without a capacity."""
        return self

    def with_skip(self, share: float) -> Self:
        """Return the same router leaving out experts below this share of the best one's score in evaluation.

        Raises:
            ConfigError: for a router that cannot.
        """
        raise ConfigError(f"moe.skip: the router is {self.title}; cannot leave out weak experts; top-k can")

    def check_skip(self) -> None:
        """Raise ConfigError for a router whose weak experts cannot be measured, then skipped."""
        raise ConfigError(
            f"skip: the router is {self.title}; must be top-k with k of at least 2 and without a capacity"
        )

    def has_constant_gates(self, num_experts: int) -> bool:
        """Return whether each token's gates are constants, so that the text gives the router no gradient."""
        return False

    def describe_remedy(self, num_experts: int) -> str:
        """Return which change lets a router with constant gates learn from the text."""
        return "router.renormalize = false"

    def count_experts_per_token(self, num_experts: int, training: bool = True) -> tuple[int, float, int]:
        """Return (fewest, expected, most) experts per token, of `num_experts`; expected is for a uniform router."""
        raise NotImplementedError

    def check_experts(self, num_experts: int) -> None:
        """Raise ConfigError if this router cannot serve so many experts."""

    def check_zero_experts(self, true_gates: bool) -> None:
        """Raise ConfigError if this router cannot choose experts without hidden units sensibly."""

    def describe_mixtral_fault(self, num_experts: int) -> str | None:
        """Return why Mixtral's router is not the same as this one, None if it is."""
        return f"the router is {self.title}, Mixtral's takes the same number of experts for every token"


def describe_constant_gates(spec: RouterSpec, num_experts: int) -> str | None:
    """Return what to tell of a router whose gates are constants, None of others."""
    if not spec.has_constant_gates(num_experts):
        return None
    return (
        f"router {spec.title} of {num_experts}: a token's one gate is renormalised to a constant, "
        "so the text gives the router no gradient, only balance losses move it; "
        f"{spec.describe_remedy(num_experts)} lets it learn from the text"
    )
