"""Which experts serve which token, as a table of booleans -> token-expert pairs sorted by expert."""

import torch

from hmoe.model.waiting import may_wait, would_wait
from hmoe.specs.routers.base import RouterSpec

T = torch.Tensor


def list_pairs(
    chosen_TE: torch.Tensor, num_tokens_E: torch.Tensor, spec: RouterSpec, training: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return (token_N, expert_N) sorted by expert, then token; and which of them are real, None for all.

    Their number is not asked for where plain top-k knows it, or where the host may not wait: then there is
    room for the most that can be chosen, and pairs beyond the counts are not real.
    """
    num_tokens, num_experts = chosen_TE.shape
    fewest, _, most = spec.count_experts_per_token(num_experts, training)
    if not would_wait(chosen_TE) or (fewest != most and may_wait(chosen_TE)):
        expert_N, token_N = chosen_TE.T.nonzero(as_tuple=True)
        return token_N, expert_N, None
    num_pairs = num_tokens * most
    # One flat scan, expert after expert: over the tokens of (T, E) a GPU scans each column with a single thread.
    place_TE = (chosen_TE.T.reshape(-1).cumsum(0) - 1).view(num_experts, num_tokens).T
    place_TE = torch.where(chosen_TE, place_TE, num_pairs)  # the last place is nobody's
    cell_TE = torch.arange(chosen_TE.numel(), device=chosen_TE.device)
    cell_N = cell_TE.new_zeros(num_pairs + 1).scatter(0, place_TE.flatten(), cell_TE)[:num_pairs]
    real_N = None
    if fewest != most:
        real_N = torch.arange(num_pairs, device=chosen_TE.device) < num_tokens_E.sum()
        cell_N = cell_N.masked_fill(~real_N, 0)
    return cell_N // num_experts, cell_N % num_experts, real_N


def cut_pairs(pairs: tuple[T, T, T], num_tokens_E: T) -> tuple[T, T, T]:
    """Return the real ones of pairs that were given room for the most; waits for the device."""
    num_pairs = int(num_tokens_E.sum())
    token_N, expert_N, gate_N = (of_pairs[:num_pairs] for of_pairs in pairs)
    return token_N, expert_N, gate_N
