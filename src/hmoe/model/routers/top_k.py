"""Top-k: the k best experts of each token, in groups, with a bias, with noise, within a capacity (HMoE eq 8).

Its options are in `hmoe.specs.routers.top_k`.
"""

import functools

import torch

from hmoe.kernels import Rule
from hmoe.model.capacity import (
    KeptChoices,
    compute_rectified_gates,
    count_capacity,
    find_ranks,
    give_unit_gates,
    keep_within_capacity,
)
from hmoe.model.routers.base import ExpertChoices, RouterMethod, sum_weights
from hmoe.model.routers.order import choose_largest, rank_largest
from hmoe.model.routing import RouterState
from hmoe.specs.routers.top_k import TopK

# Boolean (T, E); with a capacity what is kept, and what was asked.
Decision = torch.Tensor | tuple[KeptChoices, torch.Tensor]


def choose_top_k(
    scores_TE: torch.Tensor, logits_TE: torch.Tensor, spec: TopK, state: RouterState
) -> Decision:
    """Choose the k largest of each token, or what a capacity leaves of them."""
    if spec.get_capacity(state.training) is not None:
        return _keep_within_capacity(scores_TE, logits_TE, spec, state)
    assert state.widths is not None
    chosen_TE = choose_largest(
        compute_preference(scores_TE, logits_TE, spec, state.bias_E, state.gumbel_TE), spec.k
    )
    if spec.skip and not state.training:
        chosen_TE = drop_weak_choices(
            chosen_TE, scores_TE, spec.skip, sum(1 for width in state.widths if width)
        )
    return chosen_TE


def weigh_top_k(decision: Decision, scores_TE: torch.Tensor, spec: TopK, state: RouterState) -> ExpertChoices:
    """Weigh the chosen experts by their scores, over those that were kept (GShard)."""
    if isinstance(decision, torch.Tensor):
        weight_TE, total_T1 = _divide(decision, scores_TE * decision, spec, state)
        return ExpertChoices(decision, weight_TE, total_T1, scale=spec.gate_scale)
    kept, asked_E = decision
    weight_TE = kept.weigh(scores_TE)
    if spec.rectify:
        return ExpertChoices(
            kept.chosen_TE, compute_rectified_gates(weight_TE, kept, spec), None, asked_E, kept.slots
        )
    weight_TE, total_T1 = _divide(kept.chosen_TE, weight_TE, spec, state)
    return ExpertChoices(kept.chosen_TE, weight_TE, total_T1, asked_E, kept.slots, spec.gate_scale)


def make_top_k_rule(spec: TopK, state: RouterState) -> Rule | None:
    """Tell the kernels of plain top-k; groups, capacities and constant divisors are computed by the definition."""
    if spec.groups is not None or spec.straight_through or spec.get_capacity(state.training) is not None:
        return None
    if spec.skip and not state.training:
        return None
    return Rule(spec.k, 0.0, spec.scores == "sigmoid", spec.renormalize, spec.gate_scale)


def compute_preference(
    scores_TE: torch.Tensor,
    logits_TE: torch.Tensor,
    spec: TopK,
    bias_E: torch.Tensor | None,
    gumbel_TE: torch.Tensor | None,
) -> torch.Tensor:
    """Return what top-k takes the largest of; -infinity where a token may not go.

    Plain, the logits, which tell apart what a softmax or a sigmoid rounds to the same number. With groups or
    a bias (DeepSeek-V3) scores + bias. Gumbel noise (DeepSpeed's top-2) is added to the logits of all but the
    first choice.
    """
    value_TE = logits_TE if spec.groups is None and bias_E is None else scores_TE
    if bias_E is not None:
        value_TE = value_TE + bias_E
    if spec.groups is not None and spec.keep_groups is not None:
        grouped = value_TE.view(len(value_TE), spec.groups, value_TE.shape[1] // spec.groups)  # (T, J, E / J)
        # A group is worth its two best experts together, or its only one (DeepSeek-V3).
        best_TJ = grouped.topk(min(2, grouped.shape[2]), dim=2).values.sum(2)
        keep_TJ = choose_largest(best_TJ, spec.keep_groups)
        value_TE = grouped.masked_fill(~keep_TJ[:, :, None], -torch.inf).flatten(1)
    if gumbel_TE is None:
        return value_TE
    # The first choice is fixed before the noise, whatever that adds to the others.
    first_TE = choose_largest(value_TE, 1)
    return (value_TE + gumbel_TE).masked_fill(first_TE, torch.inf)


def drop_weak_choices(
    chosen_TE: torch.Tensor, scores_TE: torch.Tensor, share: float, computing: int
) -> torch.Tensor:
    """Keep of the chosen ones those with at least `share` of the best one's score (Lu et al. 2024).

    Only the first `computing` experts are compared and skipped: skipping one of width 0 would save nothing.
    """
    compared_TE = chosen_TE & (torch.arange(chosen_TE.shape[1], device=chosen_TE.device) < computing)
    best_T1 = scores_TE.masked_fill(~compared_TE, -torch.inf).amax(1, keepdim=True)
    # A quotient as where the share was measured (`skipping`), lest rounding skip the median token; negated,
    # so that a row with NaN keeps its choices.
    return chosen_TE & ~(compared_TE & (scores_TE / best_T1 < share))


def _divide(
    chosen_TE: torch.Tensor, weight_TE: torch.Tensor, spec: TopK, state: RouterState
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return weights, and what they are divided by."""
    if not spec.renormalize:
        return weight_TE, None
    if not spec.straight_through:
        return weight_TE, sum_weights(weight_TE, state)
    if spec.k == 1:
        return give_unit_gates(weight_TE, chosen_TE), None
    return weight_TE, sum_weights(weight_TE.detach(), state)


def _keep_within_capacity(
    scores_TE: torch.Tensor, logits_TE: torch.Tensor, spec: TopK, state: RouterState
) -> tuple[KeptChoices, torch.Tensor]:
    """Return what the experts take of what is asked of them, and how often each is asked."""
    assert state.widths is not None
    device, inputs = scores_TE.device, state.inputs
    real_T = inputs.real_T
    order_TK = rank_largest(
        compute_preference(scores_TE, logits_TE, spec, state.bias_E, state.gumbel_TE), spec.choices
    )
    num_tokens = len(scores_TE) if real_T is None else real_T.sum()
    slots_E = count_capacity(spec, num_tokens, state.widths, state.training, device)
    given = (inputs.token_rank_T, inputs.expert_rank_E)
    ranks = functools.partial(find_ranks, spec, len(scores_TE), state.widths, device, given, real_T)
    kept = keep_within_capacity(scores_TE, order_TK, spec, slots_E, ranks, real_T)
    asked = order_TK[:, : spec.k]  # without the choice that fills in: nobody is balanced by it
    counts = torch.ones_like(asked) if real_T is None else real_T[:, None].expand_as(asked).long()
    asked_E = torch.zeros_like(kept.chosen_TE, dtype=torch.int64).scatter(1, asked, counts).sum(0)
    return kept, asked_E


TOP_K = RouterMethod(choose_top_k, weigh_top_k, make_top_k_rule)
