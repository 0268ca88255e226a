"""Which experts serve which token: router logits -> `Routing`, one object for every kind of router."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from hmoe.routers import Router, TopK


@dataclass(frozen=True)
class Routing:
    """Token-expert pairs sorted by expert (within an expert by token), and what the losses need.

    Attributes:
        token_N: token of each pair.
        expert_N: expert of each pair.
        gate_N: gate of each pair, float32 or float64; the gates of a token sum to 1.
        logits_TE: router logits.
        probs_TE: softmax of the logits over all experts (HMoE eq 7).
        num_tokens_E: number of pairs of each expert, int64.
    """

    token_N: torch.Tensor
    expert_N: torch.Tensor
    gate_N: torch.Tensor
    logits_TE: torch.Tensor
    probs_TE: torch.Tensor
    num_tokens_E: torch.Tensor


class RouterLayer(nn.Module):
    """One linear map to expert logits, then the selection of `spec`; runs in float32 or better.

    Attributes:
        weight: (E, D).
    """

    def __init__(self, dim: int, num_experts: int, spec: Router) -> None:
        super().__init__()
        spec.check(num_experts)
        self.spec = spec
        self.weight = nn.Parameter(torch.empty(num_experts, dim))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Small logits, so that routing starts near uniform."""
        nn.init.normal_(self.weight, std=0.1 * self.weight.shape[1] ** -0.5, generator=generator)

    def forward(self, x_TD: torch.Tensor) -> Routing:
        """Route x_TD."""
        dtype = torch.float64 if x_TD.dtype == torch.float64 else torch.float32
        with torch.autocast(x_TD.device.type, enabled=False):
            return route(F.linear(x_TD.to(dtype), self.weight.to(dtype)), self.spec)


def route(logits_TE: torch.Tensor, spec: Router) -> Routing:
    """Select experts and renormalise their probabilities over the selected set (HMoE eq 7-11).

    A row with a NaN or infinite logit gets NaN probabilities and gates, never a valid choice.
    """
    poison_T1 = 0 * logits_TE.detach().sum(1, keepdim=True)  # 0, or NaN where any logit of the row is not finite
    probs_TE = torch.softmax(logits_TE + poison_T1, dim=1)
    chosen_TE = select(probs_TE.detach(), logits_TE.detach(), spec)
    gate_TE = probs_TE / (probs_TE * chosen_TE).sum(1, keepdim=True)
    expert_N, token_N = chosen_TE.T.nonzero(as_tuple=True)
    return Routing(token_N, expert_N, gate_TE[token_N, expert_N], logits_TE, probs_TE, chosen_TE.sum(0))


def select(probs_TE: torch.Tensor, logits_TE: torch.Tensor, spec: Router) -> torch.Tensor:
    """Boolean (T, E): the experts chosen by `spec`; equal experts are taken lowest index first."""
    if not isinstance(spec, TopK) and spec.p == 1:
        # Float sums of probabilities round to 1 before the last expert, so p = 1 does not compare.
        return torch.ones_like(probs_TE, dtype=torch.bool)
    order_TE = torch.argsort(logits_TE, dim=1, descending=True, stable=True)
    if isinstance(spec, TopK):
        keep_TE = torch.arange(probs_TE.shape[1], device=probs_TE.device).expand_as(probs_TE) < spec.k
    else:
        sorted_TE = probs_TE.gather(1, order_TE)
        larger_TE = F.pad(sorted_TE.cumsum(1)[:, :-1], (1, 0))  # sum of the strictly earlier ones
        keep_TE = larger_TE < spec.p  # the first is always kept: 0 < p; so is the one that crosses p
    return torch.zeros_like(keep_TE).scatter(1, order_TE, keep_TE)
