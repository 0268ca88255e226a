"""Expert choice: the best tokens of each expert (Zhou et al. 2022; `hmoe.specs.routers.expert_choice`)."""

from collections.abc import Sequence

import torch

from hmoe.model.routers.base import ExpertChoices, RouterMethod
from hmoe.model.routing import RouterState
from hmoe.model.waiting import get_constant
from hmoe.specs.routers.expert_choice import ExpertChoice


def choose_tokens(
    probs_TE: torch.Tensor, logits_TE: torch.Tensor, spec: ExpertChoice, state: RouterState
) -> torch.Tensor:
    """Choose each expert's most probable tokens."""
    assert state.widths is not None
    return choose_tokens_of_experts(probs_TE, spec, state.widths, state.inputs.real_T)


def weigh_tokens(
    chosen_TE: torch.Tensor, probs_TE: torch.Tensor, spec: ExpertChoice, state: RouterState
) -> ExpertChoices:
    """Weigh by raw probabilities."""
    return ExpertChoices(chosen_TE, probs_TE, None)


def choose_tokens_of_experts(
    probs_TE: torch.Tensor, spec: ExpertChoice, widths: Sequence[int], real_T: torch.Tensor | None = None
) -> torch.Tensor:
    """Choose each expert's most probable tokens, as boolean (T, E) (Zhou et al. 2022).

    Earlier ones come first among equals. Padding, where `real_T` is False, is not chosen and does not count
    for the capacity.
    """
    num_tokens, num_experts = probs_TE.shape
    device = probs_TE.device
    real_tokens = torch.full((), num_tokens, device=device) if real_T is None else real_T.sum()
    limit_E = (spec.capacity_factor * real_tokens.double() / num_experts).expand(num_experts)
    if spec.capacity_by == "compute":
        limit_E = limit_E * sum(widths) / num_experts / get_constant(tuple(widths), torch.int64, device)
    capacity_E = torch.ceil(limit_E - 1e-9)
    if real_T is not None:
        probs_TE = probs_TE.masked_fill(~real_T[:, None], -torch.inf)  # last, also behind probabilities of 0
    order_TE = torch.argsort(probs_TE, dim=0, descending=True, stable=True)
    place_TE = torch.arange(num_tokens, device=probs_TE.device)[:, None].expand_as(order_TE)
    chosen_TE = torch.zeros_like(order_TE).scatter(0, order_TE, place_TE) < capacity_E
    return chosen_TE if real_T is None else chosen_TE & real_T[:, None]


EXPERT_CHOICE = RouterMethod(choose_tokens, weigh_tokens)
