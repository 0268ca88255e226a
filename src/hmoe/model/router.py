"""Which experts serve which token: router logits -> `Routing`, one object for every kind of router."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from hmoe.errors import ConfigError
from hmoe.routers import Router


@dataclass(frozen=True)
class Routing:
    """Token-expert pairs sorted by expert (within an expert by token), and what the losses need.

    Attributes:
        token_N: token of each pair. A compiled top-p router appends pairs that are not real (token 0, gate 0), so that
            their number is fixed; num_tokens_E.sum() are real.
        expert_N: expert of each pair.
        gate_N: gate of each pair, float32 or float64; the gates of a token sum to 1 unless the router leaves them raw.
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

    def width_T(self, widths: Sequence[int]) -> torch.Tensor:
        """Hidden units that each token activated, float64."""
        width_N = torch.tensor(widths, dtype=torch.float64, device=self.expert_N.device)[self.expert_N]
        real_N = torch.arange(len(width_N), device=width_N.device) < self.num_tokens_E.sum()
        width_N = width_N.masked_fill(~real_N, 0)
        return torch.zeros(len(self.probs_TE), dtype=torch.float64, device=width_N.device).index_add(
            0, self.token_N, width_N
        )


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

    def forward(self, x_TD: torch.Tensor, top_p_T: torch.Tensor | None = None) -> Routing:
        """Route x_TD; `top_p_T` replaces a top-p router's threshold for each token."""
        if top_p_T is not None and self.spec.name == "top_k":
            raise ConfigError("top_p_T: the router is top-k, which has no threshold; nearest choice: a top-p model")
        dtype = torch.float64 if x_TD.dtype == torch.float64 else torch.float32
        with torch.autocast(x_TD.device.type, enabled=False):
            return route(F.linear(x_TD.to(dtype), self.weight.to(dtype)), self.spec, top_p_T)


def route(logits_TE: torch.Tensor, spec: Router, top_p_T: torch.Tensor | None = None) -> Routing:
    """Select experts and renormalise their probabilities over the selected set (HMoE eq 7-11), unless `spec` leaves them raw.

    A row with a NaN or infinite logit gets NaN probabilities and gates, never a valid choice.
    """
    poison_T1 = 0 * logits_TE.detach().sum(1, keepdim=True)  # 0, or NaN where any logit of the row is not finite
    probs_TE = torch.softmax(logits_TE + poison_T1, dim=1)
    chosen_TE = select(probs_TE.detach(), logits_TE.detach(), spec, top_p_T)
    num_tokens_E = chosen_TE.sum(0)
    token_N, expert_N, real_N = _pairs(chosen_TE, num_tokens_E, spec)
    gate_N = probs_TE.flatten().gather(0, token_N * len(num_tokens_E) + expert_N)
    if spec.renormalize:
        gate_N = gate_N / (probs_TE * chosen_TE).sum(1).gather(0, token_N)
    if real_N is not None:
        gate_N = gate_N.masked_fill(~real_N, 0)
    return Routing(token_N, expert_N, gate_N, logits_TE, probs_TE, num_tokens_E)


def _pairs(
    chosen_TE: torch.Tensor, num_tokens_E: torch.Tensor, spec: Router
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(token_N, expert_N) sorted by expert, then token; and which of them are real, None for all.

    Their number must not be asked of the device under torch.compile, nor, to spare a synchronisation, on a GPU where
    top-k knows it. Compiled top-p has room for every token at every expert; those beyond the counts are not real.
    """
    num_tokens, num_experts = chosen_TE.shape
    compiling = torch.compiler.is_compiling()
    if not (compiling or (chosen_TE.is_cuda and spec.name == "top_k")):
        expert_N, token_N = chosen_TE.T.nonzero(as_tuple=True)
        return token_N, expert_N, None
    num_pairs = num_tokens * (spec.k if spec.name == "top_k" else num_experts)
    begin_E = num_tokens_E.cumsum(0) - num_tokens_E
    place_TE = torch.where(chosen_TE, chosen_TE.cumsum(0) - 1 + begin_E, num_pairs)  # the last place is nobody's
    cell_TE = torch.arange(chosen_TE.numel(), device=chosen_TE.device)
    cell_N = cell_TE.new_zeros(num_pairs + 1).scatter(0, place_TE.flatten(), cell_TE)[:num_pairs]
    real_N = None
    if spec.name != "top_k":
        real_N = torch.arange(num_pairs, device=chosen_TE.device) < num_tokens_E.sum()
        cell_N = cell_N.masked_fill(~real_N, 0)
    return cell_N // num_experts, cell_N % num_experts, real_N


def select(
    probs_TE: torch.Tensor, logits_TE: torch.Tensor, spec: Router, top_p_T: torch.Tensor | None = None
) -> torch.Tensor:
    """Boolean (T, E): the experts chosen by `spec`; equal experts are taken lowest index first."""
    if spec.name == "top_k":
        return _largest(logits_TE, spec.k)
    # Float sums of probabilities round to 1 before the last expert, so p = 1 does not compare.
    if top_p_T is None and spec.p == 1:
        return torch.ones_like(probs_TE, dtype=torch.bool)
    order_TE = torch.argsort(logits_TE, dim=1, descending=True, stable=True)
    sorted_TE = probs_TE.gather(1, order_TE)
    larger_TE = F.pad(sorted_TE.cumsum(1)[:, :-1], (1, 0))  # sum of the strictly earlier ones
    p_T1 = spec.p if top_p_T is None else top_p_T[:, None]
    keep_TE = larger_TE < p_T1  # the first is always kept: 0 < p; so is the one that crosses p
    if top_p_T is not None:
        keep_TE = keep_TE | (top_p_T == 1)[:, None]
    return torch.zeros_like(keep_TE).scatter(1, order_TE, keep_TE)


def _largest(logits_TE: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest of each row. `topk` is a third of a stable sort's time, but which of equals it takes is not said."""
    value_TE = logits_TE.nan_to_num(torch.inf, torch.inf, -torch.inf)  # a row with NaN has k choices too
    kth_T1 = value_TE.topk(k, dim=1).values[:, -1:]
    reach_TE = value_TE >= kth_T1
    if not (torch.compiler.is_compiling() or reach_TE.is_cuda) and int(reach_TE.sum()) == k * len(reach_TE):
        return reach_TE  # no ties: nearly always, and worth asking where it costs no synchronisation
    above_TE = value_TE > kth_T1
    equal_TE = reach_TE & ~above_TE
    return above_TE | (equal_TE & (equal_TE.cumsum(1) <= k - above_TE.sum(1, keepdim=True)))
