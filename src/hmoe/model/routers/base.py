"""What every kind of router computes: a choice of experts, then their weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from hmoe.kernels import Rule
from hmoe.model.capacity import SMALLEST, CapacityCounts
from hmoe.model.routing import RouterState
from hmoe.specs.routers.base import RouterSpec


@dataclass(frozen=True)
class ExpertChoices:
    """Which experts serve which token, and how they are weighed.

    A gate is weight_TE, divided by total_T1 if that is given, times scale.

    Attributes:
        chosen_TE: boolean.
        weight_TE: what the chosen ones weigh, with the gradient of the scores.
        total_T1: what weights are divided by; None: they are gates already.
        asked_E: tokens that chose each expert before anything was dropped; None: nothing was.
        slots: what a capacity did, None without one.
        scale: multiplies gates.
    """

    chosen_TE: torch.Tensor
    weight_TE: torch.Tensor
    total_T1: torch.Tensor | None
    asked_E: torch.Tensor | None = None
    slots: CapacityCounts | None = None
    scale: float = 1.0


def weigh_by_scores(
    chosen_TE: torch.Tensor, scores_TE: torch.Tensor, spec: RouterSpec, state: RouterState
) -> ExpertChoices:
    """Weigh the chosen experts by their scores, over their sum where the router renormalises (HMoE eq 7-11)."""
    # A product, not a mask: what is not chosen gets the gradient 0, and a row of NaN stays NaN.
    weight_TE = scores_TE * chosen_TE
    return ExpertChoices(chosen_TE, weight_TE, sum_weights(weight_TE, state) if spec.renormalize else None)


@dataclass(frozen=True)
class RouterMethod:
    """The mathematics of one kind of router.

    Attributes:
        choose: (scores_TE without gradient, logits_TE without gradient, spec, state) -> a decision: a
            boolean (T, E), or whatever `weigh` understands. A recomputation under activation checkpointing
            gets the first pass's decision again.
        weigh: (decision, scores_TE with gradient, spec, state) -> ExpertChoices.
        make_rule: (spec, state) -> what the GPU's router kernels are told, None where they do not
            compute this router.
    """

    choose: Callable[[torch.Tensor, torch.Tensor, Any, RouterState], Any]
    weigh: Callable[[Any, torch.Tensor, Any, RouterState], ExpertChoices] = weigh_by_scores
    make_rule: Callable[[Any, RouterState], Rule | None] = lambda spec, state: None


def sum_weights(weight_TE: torch.Tensor, state: RouterState) -> torch.Tensor:
    """Sum the weights of a token's experts, of those that compute if only these count; never 0, it divides."""
    if not state.true_gates:
        return weight_TE.sum(1, keepdim=True).clamp(min=SMALLEST)
    assert state.widths is not None
    computing = sum(1 for width in state.widths if width)
    total_T1 = weight_TE[:, :computing].sum(1, keepdim=True)
    return torch.where(total_T1 == 0, 1, total_T1)  # nothing but null experts
