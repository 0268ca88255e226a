"""What losses of routers are functions of: sums over tokens, which add up over parts of a batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from hmoe.model.routing import Routing
from hmoe.model.waiting import would_wait


@dataclass(frozen=True)
class RouterStatistics:
    """Sums over the tokens of a batch that losses of a router are functions of.

    Further axes in front are MoE layers (Z). The sums of two parts of a batch add up to those of the whole
    (`+`), and those of several processes do (`reduce`): a loss of reduced statistics is that of all their
    tokens, because nothing is divided by the number of tokens before.

    Attributes:
        num_tokens: tokens that were routed; a scalar tensor once it was reduced over processes.
        load_E: tokens that chose each expert, whether or not a capacity then refused
            them; integers, without gradient.
        prob_sum_E: probabilities of each expert, with gradient.
        entropy_sum: entropy of each token's probabilities in nats, with
            gradient; None if it was not measured.
        z_sum: squared logsumexp of each token's logits, with gradient; None if it was not measured.
        num_load_tokens: tokens that load_E counts; None: num_tokens.
    """

    num_tokens: int | torch.Tensor
    load_E: torch.Tensor
    prob_sum_E: torch.Tensor
    entropy_sum: torch.Tensor | None = None
    z_sum: torch.Tensor | None = None
    num_load_tokens: int | torch.Tensor | None = None

    @property
    def share_E(self) -> torch.Tensor:
        """Share of the tokens that chose each expert (T_i of HMoE eq 3); the sum is the experts per token."""
        num_tokens = self.num_tokens if self.num_load_tokens is None else self.num_load_tokens
        return self.load_E.to(self.prob_sum_E.dtype) / _at_least_one(num_tokens)

    @property
    def prob_E(self) -> torch.Tensor:
        """Mean probability of each expert (P_i of HMoE eq 3)."""
        return self.prob_sum_E / self.divisor

    @property
    def divisor(self) -> int | torch.Tensor:
        """The number of tokens, but at least 1: without tokens shares and losses are 0, not NaN."""
        return _at_least_one(self.num_tokens)

    def __add__(self, other: "RouterStatistics") -> "RouterStatistics":
        """Return the statistics of the tokens of both."""
        return RouterStatistics(
            self.num_tokens + other.num_tokens,
            self.load_E + other.load_E,
            self.prob_sum_E + other.prob_sum_E,
            None
            if self.entropy_sum is None or other.entropy_sum is None
            else self.entropy_sum + other.entropy_sum,
            None if self.z_sum is None or other.z_sum is None else self.z_sum + other.z_sum,
        )

    def reduce(self, add: Callable[[torch.Tensor], torch.Tensor]) -> "RouterStatistics":
        """Return the statistics of the tokens of all processes.

        Args:
            add: sums a tensor over the processes; gradients flow as far as it lets them.
        """
        num_tokens = self.num_tokens
        if not isinstance(num_tokens, torch.Tensor):
            # Filled in on the device: a number copied there from the host would be waited for.
            num_tokens = torch.full((), num_tokens, dtype=torch.int64, device=self.load_E.device)
        return RouterStatistics(
            add(num_tokens),
            add(self.load_E),
            add(self.prob_sum_E),
            None if self.entropy_sum is None else add(self.entropy_sum),
            None if self.z_sum is None else add(self.z_sum),
        )


def _at_least_one(count: int | torch.Tensor) -> int | torch.Tensor:
    return count.clamp(min=1) if isinstance(count, torch.Tensor) else max(count, 1)


def measure_router(routing: Routing, logits: bool = True) -> RouterStatistics:
    """Return the statistics of one routing; `logits=False` leaves out what comes of logits: entropy and z."""
    return _sum_tokens(routing.probs_TE, routing.load_E, routing.logits_TE if logits else None)


def measure_routers(routings: Sequence[Routing]) -> RouterStatistics:
    """Return the statistics of the MoE layers of one forward pass, with an axis Z in front."""
    if would_wait(routings[0].probs_TE):
        # All layers at once: the numbers are small, and every launch on a GPU costs as much as a large one.
        probs_ZTE, load_ZE, logits_ZTE = (
            torch.stack([getattr(routing, name) for routing in routings])
            for name in ("probs_TE", "load_E", "logits_TE")
        )
        return _sum_tokens(probs_ZTE, load_ZE, logits_ZTE)
    layers = [measure_router(routing) for routing in routings]
    load_ZE, prob_sum_ZE, entropy_sum_Z, z_sum_Z = (
        torch.stack([getattr(layer, name) for layer in layers])
        for name in ("load_E", "prob_sum_E", "entropy_sum", "z_sum")
    )
    return RouterStatistics(layers[0].num_tokens, load_ZE, prob_sum_ZE, entropy_sum_Z, z_sum_Z)


def _sum_tokens(
    probs_TE: torch.Tensor, load_E: torch.Tensor, logits_TE: torch.Tensor | None
) -> RouterStatistics:
    if logits_TE is None:
        return RouterStatistics(probs_TE.shape[-2], load_E, probs_TE.sum(-2))
    log_probs_TE = torch.log_softmax(logits_TE, dim=-1)  # P log P through log_softmax is 0 at P = 0, not NaN
    entropy_sum = -(log_probs_TE.exp() * log_probs_TE).sum((-2, -1))
    z_sum = torch.logsumexp(logits_TE, dim=-1).square().sum(-1)
    return RouterStatistics(probs_TE.shape[-2], load_E, probs_TE.sum(-2), entropy_sum, z_sum)
