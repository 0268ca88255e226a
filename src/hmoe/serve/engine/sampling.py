"""From logits to tokens and their log-probabilities, for many sequences at a time; no row depends on another.

The candidates of a row are its most probable tokens in falling order: (B, candidates), not always the whole
vocabulary.
"""

from collections.abc import Mapping, Sequence

import torch

from hmoe.model.generate import Sampling
from hmoe.serve.engine.types import SequenceTask

_NUM_NEAR = 256  # most probable tokens that are looked at before the whole vocabulary is sorted


def adjust_logits(logits_V: torch.Tensor, task: SequenceTask, counts: Mapping[int, int]) -> None:
    """Add biases and subtract penalties in place; `counts` tells how often each token was drawn."""
    change = dict(task.bias)
    if task.frequency_penalty or task.presence_penalty:
        for token, count in counts.items():
            change[token] = change.get(token, 0.0) - task.frequency_penalty * count - task.presence_penalty
    if change:
        # One copy to the device for all of them, not one per token.
        ids = torch.tensor(list(change), device=logits_V.device)
        logits_V[ids] += torch.tensor(list(change.values()), dtype=logits_V.dtype, device=logits_V.device)


def draw_tokens(
    logits_BV: torch.Tensor, samplings: Sequence[Sampling], uniforms: Sequence[float]
) -> list[int]:
    """Draw one token per row: where the cumulated probability passes the row's uniform number in [0, 1).

    Tokens are cumulated in the order of their ids, or, where top_k or top_p is set, of their probabilities.
    How a row is computed depends on that row only, so it gives the same token whatever the others are.
    """
    token_B = logits_BV.argmax(1)  # rows with temperature 0 stay as they are
    for is_filtered, pick in ((False, _pick), (True, _pick_filtered)):
        drawn = [s.temperature > 0 and _is_filtered(s) == is_filtered for s in samplings]
        rows = [row for row, is_drawn in enumerate(drawn) if is_drawn]
        if rows:
            chosen = [samplings[row] for row in rows]
            # float64: sums over a large vocabulary in float32 would shift which token a number falls on.
            z_BV = logits_BV[rows].double()
            # The largest becomes 0 before the division, so a tiny temperature cannot overflow.
            z_BV = (z_BV - z_BV.amax(1, keepdim=True)) / _column([s.temperature for s in chosen], z_BV)
            token_B[rows] = pick(z_BV, chosen, _column([uniforms[row] for row in rows], z_BV))
    tokens: list[int] = token_B.tolist()  # copied at once for all rows
    return tokens


def _is_filtered(sampling: Sampling) -> bool:
    return sampling.top_k > 0 or sampling.top_p < 1


def _pick(z_BV: torch.Tensor, samplings: Sequence[Sampling], uniform_B1: torch.Tensor) -> torch.Tensor:
    return _search(z_BV.softmax(1), uniform_B1)[:, 0]


def _pick_filtered(
    z_BV: torch.Tensor, samplings: Sequence[Sampling], uniform_B1: torch.Tensor
) -> torch.Tensor:
    """Pick from the most probable tokens where no others are kept, which spares sorting; else from all."""
    num_near = min(_NUM_NEAR, z_BV.shape[1])
    total_B1 = z_BV.logsumexp(1, keepdim=True)
    # topk does not say which of equal values comes first. Sorted by id, then stably by value, the lowest id
    # does, as it does in the sort of the whole vocabulary below.
    near_ids = z_BV.topk(num_near, dim=1).indices.sort(dim=1).values
    near_z, order = z_BV.gather(1, near_ids).sort(dim=1, descending=True, stable=True)
    near_ids = near_ids.gather(1, order)
    is_complete = near_z > near_z[:, -1:]  # tokens as probable as the last may be missing
    shares = ((near_z - total_B1).exp() * is_complete).sum(1).tolist()
    counts = is_complete.sum(1).tolist()
    fits = [
        s.top_k <= count if s.top_k else s.top_p <= share
        for s, count, share in zip(samplings, counts, shares, strict=True)
    ]
    token_B = torch.empty(len(samplings), dtype=torch.long, device=z_BV.device)
    for is_near in (True, False):
        rows = [row for row, fit in enumerate(fits) if fit == is_near]
        if rows:
            z, ids = near_z[rows], near_ids[rows]
            if not is_near:
                z, ids = z_BV[rows].sort(dim=1, descending=True, stable=True)
            probs = _filter(z, total_B1[rows], [samplings[row] for row in rows])
            token_B[rows] = ids.gather(1, _search(probs, uniform_B1[rows]))[:, 0]
    return token_B


def _filter(z: torch.Tensor, total_B1: torch.Tensor, samplings: Sequence[Sampling]) -> torch.Tensor:
    """Return probabilities of candidates, 0 where top_k and then top_p leave them out; not renormalised."""
    top_k_B1 = _column([s.top_k for s in samplings], z)
    rank = torch.arange(z.shape[1], device=z.device)
    z = z.masked_fill((top_k_B1 > 0) & (rank >= top_k_B1), -torch.inf)
    # top_p is a share of what top_k left, where there is a top_k, and else of the whole vocabulary.
    total_B1 = torch.where(top_k_B1 > 0, z.logsumexp(1, keepdim=True), total_B1)
    probs = (z - total_B1).exp()
    # The sum of the more probable ones alone, so the token that crosses top_p is kept, and the first always.
    larger = probs.cumsum(1) - probs
    return probs * (larger < _column([s.top_p for s in samplings], z))


def _search(probs: torch.Tensor, uniform_B1: torch.Tensor) -> torch.Tensor:
    """Return the column (B, 1) at which the cumulated probability passes the row's number."""
    sums = probs.cumsum(1)
    # Scaled by the row's own total: probabilities need not add up to 1. `right` skips tokens of probability
    # 0.
    column_B1 = torch.searchsorted(sums, uniform_B1 * sums[:, -1:], right=True)
    return column_B1.clamp(max=sums.shape[1] - 1)  # rounding may carry the product up to the total


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)[:, None]


Logprobs = tuple[list[float], list[list[int]], list[list[float]]]


def gather_logprobs(logits_TV: torch.Tensor, targets: Sequence[int], num_top: int) -> Logprobs:
    """Return log-probabilities of the targets in nats; of each row the most probable tokens, and theirs."""
    logprob_TV = logits_TV.log_softmax(1)
    target_T1 = torch.tensor(targets, device=logits_TV.device)[:, None]
    of_targets: list[float] = logprob_TV.gather(1, target_T1)[:, 0].tolist()
    top = logprob_TV.topk(min(num_top, logprob_TV.shape[1]), dim=1)
    return of_targets, top.indices.tolist(), top.values.tolist()
