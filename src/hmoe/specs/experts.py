"""What a layer may have beside routed experts: zero-computation experts, HyperExperts.

They are frozen values without torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from hmoe.errors import ConfigError
from hmoe.specs.fields import Real, Spec, Whole
from hmoe.specs.routers.base import RouterSpec


@dataclass(frozen=True)
class ZeroExperts(Spec):
    """Experts of width 0, which the router can choose like any other (MoE++, AdaMoE): the limit of small size.

    They come after the others, in this order: null give 0, copy give the input x, constant give a1 x + a2 v
    with (a1, a2) = softmax(W x) and a learned v. They count among the E experts of an equal capacity, and
    have none themselves.

    Attributes:
        null, copy, constant: how many of each.
        true_gates: gates are renormalised over experts that compute (AdaMoE), not over all that were chosen.
        balance: weight of these experts in the load-balancing loss (MoE++'s tau: 0.75); below 1 they may be used more.

    Raises:
        ConfigError: for values out of range.
    """

    null: Annotated[int, Whole(0, 4096)] = 0
    copy: Annotated[int, Whole(0, 4096)] = 0
    constant: Annotated[int, Whole(0, 4096)] = 0
    true_gates: bool = False
    balance: Annotated[float, Real(1, zero=True)] = 1.0
    section: ClassVar[str] = "zero"

    def check_fields(self) -> None:
        """Raise ConfigError for fields that do not fit together."""
        if not self.count:
            raise ConfigError("zero: null, copy and constant are all 0; leave zero out")
        if self.true_gates and self.count > self.null:
            raise ConfigError(
                "zero.true_gates: would leave copy and constant experts without gates; null experts only"
            )

    def check_router(self, router: RouterSpec) -> None:
        """Raise ConfigError for a router that cannot choose them sensibly."""
        router.check_zero_experts(self.true_gates)

    @property
    def count(self) -> int:
        """How many there are."""
        return self.null + self.copy + self.constant


def append_zero_widths(widths: Sequence[int], zero: ZeroExperts | None) -> tuple[int, ...]:
    """Return the hidden units of everything that a router chooses from.

    Zero-computation experts have none, and come last.
    """
    return (*widths, *(0,) * (zero.count if zero else 0))


@dataclass(frozen=True)
class Hyper(Spec):
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

    dim: Annotated[int, Whole(1, 65536)] = 64
    embedding: Annotated[int, Whole(1, 65536)] = 128
    hidden: Annotated[int, Whole(1, 65536)] = 128
    layer_embedding: Annotated[int, Whole(1, 65536)] = 10
    init: Literal["paper", "zero"] = "paper"
    section: ClassVar[str] = "hyper"

    def check_router(self, router: RouterSpec) -> None:
        """Raise ConfigError for a router with which evaluation would select otherwise than training."""
        if router.skips:
            raise ConfigError(
                "hyper: router.skip would make HyperExperts of selections that training never saw; remove one of them"
            )

    def network_parameters(self, dim: int, layers: int) -> int:
        """Return the parameters of the hypernetwork that the layers share, for a model of width `dim`."""
        trunk = layers * self.layer_embedding + (self.hidden + self.layer_embedding + 1) * self.hidden
        return trunk + (self.hidden + 1) * self.active_parameters(dim)

    def layer_parameters(self, num_experts: int) -> int:
        """Return the parameters of one layer: its experts' embeddings and the map after their sum."""
        return (
            num_experts * self.embedding
            + (self.embedding + 1) * self.hidden
            + (self.hidden + 1) * self.hidden
        )

    def generation_parameters(self, dim: int) -> int:
        """Return the parameters multiplied once per distinct selection and layer for its HyperExpert."""
        before = self.embedding + self.hidden + self.hidden + self.layer_embedding
        return self.hidden * (before + self.active_parameters(dim))

    def active_parameters(self, dim: int) -> int:
        """Return the parameters of one HyperExpert: what a token is multiplied with."""
        return 2 * dim * self.dim + dim + self.dim
