"""What a layer may have beside routed experts, as frozen values without torch: zero-computation experts, HyperExperts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from hmoe.errors import ConfigError
from hmoe.specs.routers import Router

_FORBID_EXTRA = {"extra": "forbid"}


@dataclass(frozen=True)
class ZeroExperts:
    """Experts of width 0, which the router can choose like any other (MoE++, AdaMoE): the limit of small size.

    They come after the others, in this order: null give 0, copy give the input x, constant give a1 x + a2 v with
    (a1, a2) = softmax(W x) and a learned v. They count among the E experts of an equal capacity, and have none themselves.

    Attributes:
        null, copy, constant: how many of each.
        true_gates: gates are renormalised over experts that compute (AdaMoE), not over all that were chosen.
        balance: weight of these experts in the load-balancing loss (MoE++'s tau: 0.75); below 1 they may be used more.

    Raises:
        ConfigError: for values out of range.
    """

    null: int = 0
    copy: int = 0
    constant: int = 0
    true_gates: bool = False
    balance: float = 1.0
    __pydantic_config__: ClassVar = _FORBID_EXTRA

    def __post_init__(self) -> None:
        for name in ("null", "copy", "constant"):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value <= 4096:
                raise ConfigError(f"zero.{name} = {value!r}, must be an integer from 0 to 4096")
        if not self.count:
            raise ConfigError("zero: null, copy and constant are all 0; leave zero out")
        if isinstance(self.balance, bool) or not 0 <= self.balance <= 1:
            raise ConfigError(f"zero.balance = {self.balance}, must be from 0 to 1")
        if self.true_gates and self.count > self.null:
            raise ConfigError("zero.true_gates: would leave copy and constant experts without gates; null experts only")

    def check(self, router: Router) -> None:
        """Raise ConfigError for a router that cannot choose them sensibly."""
        if router.name == "expert_choice":
            raise ConfigError(
                "zero: has no place with expert_choice, whose experts take tokens whether they compute or not"
            )
        if self.true_gates and (getattr(router, "rectify", None) or not getattr(router, "renormalize", True)):
            raise ConfigError("zero.true_gates has no effect on gates that are raw or rectified; remove it")
        if getattr(router, "bias_by", "tokens") == "compute":
            raise ConfigError(
                "zero: router.bias_by = compute would send every token to experts that cost nothing; tokens"
            )

    @property
    def count(self) -> int:
        """How many there are."""
        return self.null + self.copy + self.constant


def routed_widths(widths: Sequence[int], zero: ZeroExperts | None) -> tuple[int, ...]:
    """Hidden units of everything that a router chooses from: zero-computation experts have none, and come last."""
    return (*widths, *(0,) * (zero.count if zero else 0))


@dataclass(frozen=True)
class Hyper:
    """HyperExperts (Zhao et al. 2024): a small network per token, generated from the experts that it did not select.

    Attributes:
        dim: hidden units of a HyperExpert.
        embedding: width of an expert's embedding.
        hidden: hidden units of the hypernetwork and of the map before it.
        layer_embedding: width of a layer's embedding.
        init: "paper" starts within about 1e-3 of the plain layer, "zero" exactly on it.

    Raises:
        ConfigError: for values out of range.
    """

    dim: int = 64
    embedding: int = 128
    hidden: int = 128
    layer_embedding: int = 10
    init: Literal["paper", "zero"] = "paper"
    __pydantic_config__: ClassVar = _FORBID_EXTRA

    def __post_init__(self) -> None:
        for name in ("dim", "embedding", "hidden", "layer_embedding"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= 65536:
                raise ConfigError(f"hyper.{name} = {value!r}, must be an integer from 1 to 65536")
        if self.init not in ("paper", "zero"):
            raise ConfigError(f"hyper.init = {self.init!r}, must be paper or zero")

    def check(self, router: Router) -> None:
        """Raise ConfigError for a router with which evaluation would select otherwise than training."""
        if getattr(router, "skip", None) is not None:
            raise ConfigError(
                "hyper: router.skip would make HyperExperts of selections that training never saw; remove one of them"
            )

    def network_parameters(self, dim: int, layers: int) -> int:
        """Of the hypernetwork that the layers share, for a model of width `dim`."""
        trunk = layers * self.layer_embedding + (self.hidden + self.layer_embedding + 1) * self.hidden
        return trunk + (self.hidden + 1) * self.active_parameters(dim)

    def layer_parameters(self, num_experts: int) -> int:
        """Of one layer: its experts' embeddings and the map after their sum."""
        return num_experts * self.embedding + (self.embedding + 1) * self.hidden + (self.hidden + 1) * self.hidden

    def generation_parameters(self, dim: int) -> int:
        """Multiplied once per distinct selection and layer, to make its HyperExpert."""
        before = self.embedding + self.hidden + self.hidden + self.layer_embedding
        return self.hidden * (before + self.active_parameters(dim))

    def active_parameters(self, dim: int) -> int:
        """Of one HyperExpert: what a token is multiplied with."""
        return 2 * dim * self.dim + dim + self.dim
