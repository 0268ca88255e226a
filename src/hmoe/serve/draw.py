"""From logits to tokens and their log-probabilities, many rows at a time; no row depends on another."""

from collections.abc import Mapping, Sequence

import torch

from hmoe.model.generate import Sampling
from hmoe.serve.ask import Ask


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
    """One token per row; `uniforms` in [0, 1) are the randomness of each row (not looked at where temperature is 0)."""
    token_M = logits_MV.argmax(1)
    for filtered in (False, True):
        # apart, so that the order in which a row's tokens are summed is its own affair
        rows = [i for i, h in enumerate(hows) if h.temperature > 0 and (h.top_k > 0 or h.top_p < 1) == filtered]
        if rows:
            token_M[rows] = _sample(logits_MV[rows], [hows[i] for i in rows], [uniforms[i] for i in rows], filtered)
    tokens: list[int] = token_M.tolist()
    return tokens


def _sample(
    logits_MV: torch.Tensor, hows: Sequence[Sampling], uniforms: Sequence[float], filtered: bool
) -> torch.Tensor:
    """The token at which the cumulated probability passes the row's uniform number."""

    def column(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits_MV.device)[:, None]

    z_MV = logits_MV.double()
    z_MV = (z_MV - z_MV.amax(1, keepdim=True)) / column([how.temperature for how in hows])
    order_MV = None
    if filtered:
        z_MV, order_MV = z_MV.sort(dim=1, descending=True, stable=True)
        rank_V = torch.arange(z_MV.shape[1], device=z_MV.device)
        z_MV = z_MV.masked_fill(rank_V >= column([how.top_k or torch.inf for how in hows]), -torch.inf)
    probs_MV = z_MV.softmax(1)
    if filtered:
        larger_MV = probs_MV.cumsum(1) - probs_MV
        probs_MV = probs_MV * (larger_MV < column([how.top_p for how in hows]))
    sum_MV = probs_MV.cumsum(1)
    place_M1 = torch.searchsorted(sum_MV, column(uniforms) * sum_MV[:, -1:], right=True)
    place_M1 = place_M1.clamp(max=sum_MV.shape[1] - 1)
    return (place_M1 if order_MV is None else order_MV.gather(1, place_M1))[:, 0]


Told = tuple[list[float], list[list[int]], list[list[float]]]


def tell(logits_MV: torch.Tensor, targets: Sequence[int], num_top: int) -> Told:
    """Log-probabilities of the targets in nats; of each row the most probable tokens, and their log-probabilities."""
    logprob_MV = logits_MV.log_softmax(1)
    target_M1 = torch.tensor(targets, device=logits_MV.device)[:, None]
    of_targets: list[float] = logprob_MV.gather(1, target_M1)[:, 0].tolist()
    top = logprob_MV.topk(min(num_top, logprob_MV.shape[1]), dim=1)
    return of_targets, top.indices.tolist(), top.values.tolist()
