"""Scores -> which experts serve which token, before any limit: top-k, in groups and with a bias; top-p; expert choice."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from hmoe.errors import ConfigError
from hmoe.model.waiting import constant, would_wait
from hmoe.specs.routers import ExpertChoice, TopK, TopP


def largest(value_TE: torch.Tensor, k: int) -> torch.Tensor:
    """Boolean (T, E): the k largest of each row, lowest index first among equals.

    `topk` is a third of a stable sort's time, but which of equals it takes is not said.
    """
    value_TE = value_TE.nan_to_num(torch.inf, torch.inf, -torch.inf)  # a row with NaN has k choices too
    kth_T1 = value_TE.topk(k, dim=1).values[:, -1:]
    reach_TE = value_TE >= kth_T1
    if not would_wait(reach_TE) and int(reach_TE.sum()) == k * len(reach_TE):
        return reach_TE  # no ties: nearly always, and worth asking where it costs no synchronisation
    above_TE = value_TE > kth_T1
    equal_TE = reach_TE & ~above_TE
    return above_TE | (equal_TE & (equal_TE.cumsum(1) <= k - above_TE.sum(1, keepdim=True)))


def stronger(chosen_TE: torch.Tensor, scores_TE: torch.Tensor, share: float, computing: int) -> torch.Tensor:
    """Of the chosen ones those with at least `share` of the best one's score (Lu et al. 2024).

    Only the first `computing` experts are compared and skipped: skipping one of width 0 would save nothing.
    """
    compared_TE = chosen_TE & (torch.arange(chosen_TE.shape[1], device=chosen_TE.device) < computing)
    best_T1 = scores_TE.masked_fill(~compared_TE, -torch.inf).amax(1, keepdim=True)
    # A quotient as where the share was measured (`skipping`), lest rounding skip the median token; negated, so that a row with
    # NaN keeps its choices.
    return chosen_TE & ~(compared_TE & (scores_TE / best_T1 < share))


def ranked(value_TE: torch.Tensor, k: int) -> torch.Tensor:
    """(T, k): the k largest of each row in descending order, lowest index first among equals."""
    value_TE = value_TE.nan_to_num(torch.inf, torch.inf, -torch.inf)
    return torch.argsort(value_TE, dim=1, descending=True, stable=True)[:, :k]


def preference(
    scores_TE: torch.Tensor,
    logits_TE: torch.Tensor,
    spec: TopK,
    bias_E: torch.Tensor | None,
    gumbel_TE: torch.Tensor | None,
) -> torch.Tensor:
    """What top-k takes the largest of; -infinity where a token may not go.

    Plain, the logits, which tell apart what a softmax or a sigmoid rounds to the same number. With groups or a bias (DeepSeek-V3)
    scores + bias. Gumbel noise (DeepSpeed's top-2) is added to the logits of all but the first choice.
    """
    value_TE = logits_TE if spec.groups is None and bias_E is None else scores_TE
    if bias_E is not None:
        value_TE = value_TE + bias_E
    if spec.groups is not None and spec.keep_groups is not None:
        grouped_TGM = value_TE.view(len(value_TE), spec.groups, value_TE.shape[1] // spec.groups)
        best_TG = grouped_TGM.topk(min(2, grouped_TGM.shape[2]), dim=2).values.sum(2)
        keep_TG = largest(best_TG, spec.keep_groups)
        value_TE = grouped_TGM.masked_fill(~keep_TG[:, :, None], -torch.inf).flatten(1)
    if gumbel_TE is None:
        return value_TE
    first_TE = largest(value_TE, 1)
    return (value_TE + gumbel_TE).masked_fill(first_TE, torch.inf)


def top_p(
    probs_TE: torch.Tensor, logits_TE: torch.Tensor, spec: TopP, top_p_T: torch.Tensor | None = None
) -> torch.Tensor:
    """Boolean (T, E): the largest until their sum reaches p (HMoE eq 9-10); `top_p_T` is another p for each token."""
    # Float sums of probabilities round to 1 before the last expert, so p = 1 does not compare.
    if top_p_T is None and spec.p == 1:
        return torch.ones_like(probs_TE, dtype=torch.bool)
    order_TE = torch.argsort(logits_TE, dim=1, descending=True, stable=True)
    sorted_TE = probs_TE.gather(1, order_TE)
    larger_TE = sorted_TE.cumsum(1)[:, :-1]  # sum of the strictly earlier ones, of all but the first
    p_T1 = spec.p if top_p_T is None else top_p_T[:, None]
    # The first is kept without comparing: a tiny p is 0 in float32. The one that crosses p is kept too.
    keep_TE = F.pad(larger_TE < p_T1, (1, 0), value=True)
    if top_p_T is not None:
        keep_TE = keep_TE | (top_p_T == 1)[:, None]
    return torch.zeros_like(keep_TE).scatter(1, order_TE, keep_TE)


def check_thresholds(top_p_T: torch.Tensor, num_tokens: int) -> None:
    """Raise ConfigError unless there is one for each token, from 0 to 1; values are seen on the CPU only, a GPU would have to be waited
    for."""
    if top_p_T.shape != (num_tokens,):
        raise ConfigError(f"top_p_T: its shape is {tuple(top_p_T.shape)}, must be ({num_tokens},), a threshold each")
    if would_wait(top_p_T):
        return
    wrong_T = ~((top_p_T >= 0) & (top_p_T <= 1))
    if wrong_T.any():
        first = int(wrong_T.nonzero()[0])
        raise ConfigError(f"top_p_T: {float(top_p_T[first])} of token {first}, must be from 0 to 1")


def expert_choice(
    probs_TE: torch.Tensor, spec: ExpertChoice, widths: Sequence[int], real_T: torch.Tensor | None = None
) -> torch.Tensor:
    """Boolean (T, E): each expert's most probable tokens, earlier ones first among equals (Zhou et al. 2022).

    Padding, where `real_T` is False, is not chosen and does not count for the capacity.
    """
    num_tokens, num_experts = probs_TE.shape
    device = probs_TE.device
    real_tokens = torch.full((), num_tokens, device=device) if real_T is None else real_T.sum()
    limit_E = (spec.capacity_factor * real_tokens.double() / num_experts).expand(num_experts)
    if spec.capacity_by == "compute":
        limit_E = limit_E * sum(widths) / num_experts / constant(tuple(widths), torch.int64, device)
    capacity_E = torch.ceil(limit_E - 1e-9)
    if real_T is not None:
        probs_TE = probs_TE.masked_fill(~real_T[:, None], -torch.inf)  # last, also behind probabilities of 0
    order_TE = torch.argsort(probs_TE, dim=0, descending=True, stable=True)
    place_TE = torch.arange(num_tokens, device=probs_TE.device)[:, None].expand_as(order_TE)
    chosen_TE = torch.zeros_like(order_TE).scatter(0, order_TE, place_TE) < capacity_E
    return chosen_TE if real_T is None else chosen_TE & real_T[:, None]
