"""From logits to tokens and their log-probabilities, many rows at a time; no row depends on another."""

from collections.abc import Mapping, Sequence

import torch

from hmoe.model.generate import Sampling
from hmoe.serve.engine.types import Ask

_NEAR = 256  # most probable tokens that are looked at before the whole vocabulary is sorted


def adjust(logits_V: torch.Tensor, ask: Ask, counts: Mapping[int, int]) -> None:
    """Add biases and subtract penalties in place; `counts` says how often each token was drawn."""
    change = dict(ask.bias)
    if ask.frequency_penalty or ask.presence_penalty:
        for token, count in counts.items():
            change[token] = change.get(token, 0.0) - ask.frequency_penalty * count - ask.presence_penalty
    if change:
        ids = torch.tensor(list(change), device=logits_V.device)
        logits_V[ids] += torch.tensor(list(change.values()), dtype=logits_V.dtype, device=logits_V.device)


def draw(logits_MV: torch.Tensor, hows: Sequence[Sampling], uniforms: Sequence[float]) -> list[int]:
    """One token per row: where the cumulated probability passes the row's uniform number in [0, 1).

    Tokens are cumulated in the order of their ids, or, where top_k or top_p is set, of their probabilities. How a row is
    computed depends on that row only, so it gives the same token whatever the others are.
    """
    token_M = logits_MV.argmax(1)
    for filtered, pick in ((False, _pick), (True, _pick_filtered)):
        rows = [i for i, h in enumerate(hows) if h.temperature > 0 and (h.top_k > 0 or h.top_p < 1) == filtered]
        if rows:
            how = [hows[i] for i in rows]
            z_MV = logits_MV[rows].double()
            z_MV = (z_MV - z_MV.amax(1, keepdim=True)) / _column([h.temperature for h in how], z_MV)
            token_M[rows] = pick(z_MV, how, _column([uniforms[i] for i in rows], z_MV))
    tokens: list[int] = token_M.tolist()
    return tokens


def _pick(z_MV: torch.Tensor, hows: Sequence[Sampling], uniform_M1: torch.Tensor) -> torch.Tensor:
    return _passed(z_MV.softmax(1), uniform_M1)[:, 0]


def _pick_filtered(z_MV: torch.Tensor, hows: Sequence[Sampling], uniform_M1: torch.Tensor) -> torch.Tensor:
    """From the most probable tokens where they are all that is kept, which spares sorting the vocabulary; else from all."""
    num_near = min(_NEAR, z_MV.shape[1])
    total_M1 = z_MV.logsumexp(1, keepdim=True)
    order_MK = z_MV.topk(num_near, dim=1).indices.sort(dim=1).values
    value_MK, by_value_MK = z_MV.gather(1, order_MK).sort(dim=1, descending=True, stable=True)
    order_MK = order_MK.gather(1, by_value_MK)
    complete_MK = value_MK > value_MK[:, -1:]  # tokens as probable as the last may be missing
    shares = ((value_MK - total_M1).exp() * complete_MK).sum(1).tolist()
    numbers = complete_MK.sum(1).tolist()
    near = [how.top_k <= n if how.top_k else how.top_p <= p for how, n, p in zip(hows, numbers, shares, strict=True)]
    token_M = torch.empty(len(hows), dtype=torch.long, device=z_MV.device)
    for rows, is_near in (([i for i, n in enumerate(near) if n == which], which) for which in (True, False)):
        if rows:
            value, order = value_MK[rows], order_MK[rows]
            if not is_near:
                value, order = z_MV[rows].sort(dim=1, descending=True, stable=True)
            probs = _kept(value, total_M1[rows], [hows[i] for i in rows])
            token_M[rows] = order.gather(1, _passed(probs, uniform_M1[rows]))[:, 0]
    return token_M


def _kept(value_MK: torch.Tensor, total_M1: torch.Tensor, hows: Sequence[Sampling]) -> torch.Tensor:
    """Probabilities of tokens in falling order, 0 for those that top_k and then top_p leave out; not renormalised."""
    top_k_M1 = _column([how.top_k for how in hows], value_MK)
    rank_K = torch.arange(value_MK.shape[1], device=value_MK.device)
    value_MK = value_MK.masked_fill((top_k_M1 > 0) & (rank_K >= top_k_M1), -torch.inf)
    total_M1 = torch.where(top_k_M1 > 0, value_MK.logsumexp(1, keepdim=True), total_M1)
    probs_MK = (value_MK - total_M1).exp()
    larger_MK = probs_MK.cumsum(1) - probs_MK
    return probs_MK * (larger_MK < _column([how.top_p for how in hows], value_MK))


def _passed(probs_MK: torch.Tensor, uniform_M1: torch.Tensor) -> torch.Tensor:
    """Place (M, 1) at which the cumulated probability passes the row's number."""
    sum_MK = probs_MK.cumsum(1)
    place_M1 = torch.searchsorted(sum_MK, uniform_M1 * sum_MK[:, -1:], right=True)
    return place_M1.clamp(max=sum_MK.shape[1] - 1)


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)[:, None]


Told = tuple[list[float], list[list[int]], list[list[float]]]


def tell(logits_MV: torch.Tensor, targets: Sequence[int], num_top: int) -> Told:
    """Log-probabilities of the targets in nats; of each row the most probable tokens, and their log-probabilities."""
    logprob_MV = logits_MV.log_softmax(1)
    target_M1 = torch.tensor(targets, device=logits_MV.device)[:, None]
    of_targets: list[float] = logprob_MV.gather(1, target_M1)[:, 0].tolist()
    top = logprob_MV.topk(min(num_top, logprob_MV.shape[1]), dim=1)
    return of_targets, top.indices.tolist(), top.values.tolist()
