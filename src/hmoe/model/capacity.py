"""Experts with a limit: what is dropped, and how Rectify-Router makes use of it (Zeng et al. 2024; Switch, GShard).

Capacity concerns what an expert may hold, so it is a matter of one batch: whether a token is dropped depends
on the others.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from hmoe.errors import ConfigError
from hmoe.model.waiting import get_constant
from hmoe.specs.routers.top_k import TopK

SMALLEST = 1e-30  # of what gates are divided by: where all scores underflow, gradients must not overflow
_NOWHERE = -(2**31)  # rank of experts that compute nothing
UNLIMITED = 2**31  # slots of an expert that costs nothing
Ranks = Callable[[], tuple[torch.Tensor, torch.Tensor]]


class CapacityCounts(NamedTuple):
    """Counts of one layer and batch, int64.

    Attributes:
        dropped: first k choices that no slot was left for.
        filled: choices number k + 1 that were taken into slots left over (FR).
        rectified: tokens that went to the best expert of their own rank (IR).
        padded: slots that stayed empty.
    """

    dropped: torch.Tensor
    filled: torch.Tensor
    rectified: torch.Tensor
    padded: torch.Tensor


class KeptChoices(NamedTuple):
    """Which experts serve a token.

    Attributes:
        chosen_TE: those that took it, and the local one that rectifies.
        kept_TE: those that took it.
        times_TE: how many times the local one stands in; None: nothing is rectified.
        accepted_T: choices that were accepted.
    """

    chosen_TE: torch.Tensor
    kept_TE: torch.Tensor
    times_TE: torch.Tensor | None
    accepted_T: torch.Tensor
    slots: CapacityCounts

    def weigh(self, scores_TE: torch.Tensor) -> torch.Tensor:
        """Return weights before they are divided, which carry the scores' gradient."""
        weight_TE = scores_TE * self.kept_TE
        return weight_TE if self.times_TE is None else weight_TE + scores_TE * self.times_TE


def count_capacity(
    spec: TopK, num_tokens: int | torch.Tensor, widths: Sequence[int], training: bool, device: torch.device
) -> torch.Tensor:
    """Return the tokens that each expert may take (E,), int64.

    Experts of width 0 cost nothing and have no limit. The number of tokens is a tensor where the batch has
    padding: asking for it would wait for the device.
    """
    factor = spec.get_capacity(training)
    assert factor is not None
    if not isinstance(num_tokens, torch.Tensor):
        num_tokens = torch.full((), num_tokens, device=device)
    width_E = get_constant(tuple(widths), torch.float64, device)
    share_E = (
        width_E / sum(widths) if spec.capacity_by == "width" else torch.full_like(width_E, 1 / len(widths))
    )
    wanted = factor * spec.k * num_tokens.double()
    slots_E = torch.ceil(wanted * share_E - 1e-9).long().clamp(min=spec.min_capacity)
    return slots_E.masked_fill(width_E == 0, UNLIMITED)


def accept_choices(order_TK: torch.Tensor, capacity_E: torch.Tensor, order_T: torch.Tensor) -> torch.Tensor:
    """Return which choices get a slot, boolean (T, K).

    All first choices come before all second ones; within a choice tokens come in the order `order_T`.
    """
    queue_N = order_TK[order_T].T.flatten()
    sorted_N, by_expert_N = torch.sort(queue_N, stable=True)
    begin_E = torch.searchsorted(sorted_N, torch.arange(len(capacity_E), device=sorted_N.device))
    slot_N = torch.arange(len(queue_N), device=sorted_N.device) - begin_E[sorted_N]
    kept_N = torch.empty_like(slot_N, dtype=torch.bool).scatter(0, by_expert_N, slot_N < capacity_E[sorted_N])
    kept_TK = kept_N.view(order_TK.shape[1], -1).T
    return torch.empty_like(kept_TK).index_copy(0, order_T, kept_TK)


def keep_within_capacity(
    scores_TE: torch.Tensor,
    order_TK: torch.Tensor,
    spec: TopK,
    capacity_E: torch.Tensor,
    ranks: Ranks,
    real_T: torch.Tensor | None = None,
) -> KeptChoices:
    """Drop what exceeds the capacity, and rectify.

    Args:
        scores_TE: router scores.
        order_TK: choices of each token, best first; k of them, or k + 1 to fill in.
        spec: of the router.
        capacity_E: tokens that each expert may take.
        ranks: gives token_rank_T and expert_rank_E; only IR asks.
        real_T: False for padding, which no expert takes; None: there is none.
    """
    if spec.priority == "score":  # batch-prioritised: by the largest score, for every choice
        order_T = torch.argsort(scores_TE.amax(1), descending=True, stable=True)
    else:
        order_T = torch.arange(len(scores_TE), device=scores_TE.device)
    kept_TK = accept_choices(*_without_padding(order_TK, capacity_E, real_T), order_T)
    kept_TE = torch.zeros_like(scores_TE, dtype=torch.bool).scatter(1, order_TK, kept_TK)
    accepted_T = kept_TK.sum(1)
    chosen_TE, times_TE = kept_TE, None
    served_T = torch.zeros_like(accepted_T, dtype=torch.bool)
    if spec.uses_ranks:
        times_TE = _local(scores_TE, accepted_T, spec, ranks())
        times_TE = times_TE if real_T is None else times_TE * real_T[:, None]
        served_T = times_TE.any(1)
        chosen_TE = kept_TE | (times_TE > 0)
    # Slots of experts without a limit would make the padding infinite; they cost nothing.
    free_E = (capacity_E - kept_TE.sum(0)).masked_fill(capacity_E == UNLIMITED, 0)
    refused = ~kept_TK[:, : spec.k]  # of the k choices, without the one that fills in
    slots = CapacityCounts(
        dropped=(refused if real_T is None else refused & real_T[:, None]).sum(),
        filled=kept_TK[:, spec.k :].sum(),
        rectified=served_T.sum(),
        padded=free_E.sum(),
    )
    return KeptChoices(chosen_TE, kept_TE, times_TE, accepted_T, slots)


def _without_padding(
    order_TK: torch.Tensor, capacity_E: torch.Tensor, real_T: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return choices and slots where padding asks for one more expert, which has no slot."""
    if real_T is None:
        return order_TK, capacity_E
    return order_TK.masked_fill(~real_T[:, None], len(capacity_E)), F.pad(capacity_E, (0, 1))


def _local(
    scores_TE: torch.Tensor, accepted_T: torch.Tensor, spec: TopK, ranks: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Return how many times a token's best expert of its own rank stands in (IR), (T, E); 0 for all others.

    A rank without experts rectifies nothing.
    """
    token_rank_T, expert_rank_E = ranks
    local_TE = token_rank_T[:, None] == expert_rank_E
    best_T1 = scores_TE.masked_fill(~local_TE, -1).argmax(1, keepdim=True)
    needy_T = {"all": accepted_T == 0, "any": accepted_T < spec.choices, "fewer": accepted_T < spec.k}[
        spec.when
    ]
    wanted = spec.k + 1 if spec.local_scale == "k+1-r" else spec.k  # paper: k; the authors' code: k + 1
    missing_T = (wanted - accepted_T).clamp(min=0)
    times_T = torch.where(needy_T & local_TE.any(1), missing_T, 0)  # a rank may have no expert
    return torch.zeros_like(scores_TE).scatter(1, best_T1, times_T[:, None].to(scores_TE.dtype))


def compute_rectified_gates(weight_TE: torch.Tensor, kept: KeptChoices, spec: TopK) -> torch.Tensor:
    """Return gates (T, E) that sum to 1.

    Their denominator is a constant to the gradient (straight through; paper A5). With k = 1 and no filling an
    accepted token's gate is p - constant(p) + 1, as in the authors' code.
    """
    total_T1 = weight_TE.detach().sum(1, keepdim=True)
    gate_TE = weight_TE / total_T1.clamp(min=SMALLEST)
    if spec.choices > 1:
        return gate_TE
    one_TE = give_unit_gates(weight_TE, kept.chosen_TE)
    return torch.where(kept.accepted_T[:, None] > 0, one_TE, gate_TE)


def give_unit_gates(weight_TE: torch.Tensor, chosen_TE: torch.Tensor) -> torch.Tensor:
    """Return gates 1 with the gradient of raw ones (authors' code: moe_gate_st)."""
    return weight_TE - weight_TE.detach() + chosen_TE


def find_ranks(
    spec: TopK,
    num_tokens: int,
    widths: Sequence[int],
    device: torch.device,
    given: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None),
    real_T: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ranks of tokens and experts: those given, else simulated ones.

    Simulated ones are contiguous shares on `spec.ranks` ranks. Experts of width 0, which come last, are on no
    rank: they rectify nothing.

    Raises:
        ConfigError: for ranks of the wrong number.
    """
    computing = sum(1 for width in widths if width)
    ranks = spec.ranks or computing
    token_rank_T, expert_rank_E = given
    if token_rank_T is None:
        if real_T is None:
            token_rank_T = torch.arange(num_tokens, device=device) * ranks // max(num_tokens, 1)
        else:  # shares of the tokens that are not padding
            token_rank_T = (real_T.cumsum(0) - 1).clamp(min=0) * ranks // real_T.sum().clamp(min=1)
    if expert_rank_E is None:
        ranks_E = [i * ranks // computing if i < computing else _NOWHERE for i in range(len(widths))]
        expert_rank_E = get_constant(tuple(ranks_E), torch.int64, device)
    for name, rank, expected in (
        ("token_rank_T", token_rank_T, num_tokens),
        ("expert_rank_E", expert_rank_E, len(widths)),
    ):
        if rank.shape != (expected,):
            raise ConfigError(f"{name}: its shape is {tuple(rank.shape)}, must be ({expected},), a rank each")
    return token_rank_T, expert_rank_E
