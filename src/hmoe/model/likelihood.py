"""How probable a model finds tokens: the basis of validation, perplexity and benchmarks."""

import torch

from hmoe.model.cross_entropy import cross_entropy
from hmoe.model.transformer import Transformer

_CHUNK_NUMBERS = 2**24  # logits that exist at one time


@torch.no_grad()
def mean_nll(model: Transformer, tokens_BL: torch.Tensor, targets_BL: torch.Tensor) -> float:
    """Mean negative log-likelihood of the targets, in nats per token."""
    x_BLD, _ = model.hidden(tokens_BL)
    chunk = max(1, _CHUNK_NUMBERS // model.config.vocab)
    return cross_entropy(x_BLD.flatten(0, 1), model.head_weight, targets_BL.flatten(), chunk).item()


@torch.no_grad()
def text_nll(model: Transformer, tokens: list[int], window: int) -> float:
    """Negative log-likelihood of tokens[1:] in nats, summed, any length.

    Windows of `window` tokens advance by half a window, so every token but the first few is read after at least
    window / 2 tokens of context, and each is counted once.
    """
    device = model.embed.weight.device
    stride = max(1, window // 2)
    total, done = 0.0, 1
    for start in range(0, max(len(tokens) - 1, 0), stride):
        piece = torch.tensor(tokens[start : start + window + 1], device=device)
        fresh = len(piece) - (done - start)  # targets not counted by the window before
        if fresh <= 0:
            break
        x_BLD, _ = model.hidden(piece[None, :-1])
        chunk = max(1, _CHUNK_NUMBERS // model.config.vocab)
        total += fresh * cross_entropy(x_BLD[0, -fresh:], model.head_weight, piece[-fresh:], chunk).item()
        done = start + len(piece)
    return total
