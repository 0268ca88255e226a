"""Text from a model, token by token."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from hmoe.errors import ConfigError, NonFiniteError
from hmoe.model.transformer import Transformer, dropless


class Vocabulary(Protocol):
    """What generation needs of a tokenizer."""

    vocab_size: int
    ends: tuple[int, ...]


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: 0 takes the most probable token.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the most probable tokens until their sum reaches p; 1 keeps all.

    Raises:
        ConfigError: for values out of range.
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise ConfigError(f"temperature = {self.temperature}, must be from 0 to 100")
        if self.top_k < 0:
            raise ConfigError(f"top_k = {self.top_k}, must be at least 0 (0 keeps all tokens)")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p = {self.top_p}, must be in (0, 1]")


def sample(logits_V: torch.Tensor, how: Sampling, generator: torch.Generator) -> int:
    """Draw one token.

    Raises:
        NonFiniteError: if the logits hold NaN or +infinity.
    """
    logits_V = logits_V.double()
    if not torch.isfinite(logits_V.max()):
        raise NonFiniteError("generate: the model's logits are NaN or infinite")
    if how.temperature == 0:
        return int(logits_V.argmax())
    sorted_V, order_V = torch.sort((logits_V - logits_V.max()) / how.temperature, descending=True, stable=True)
    if how.top_k:
        sorted_V = sorted_V[: how.top_k]
    probs_V = sorted_V.softmax(0)
    probs_V = probs_V * (probs_V.cumsum(0) - probs_V < how.top_p)
    return int(order_V[torch.multinomial(probs_V.cpu(), 1, generator=generator)])


@torch.inference_mode()
def generate(
    model: Transformer, prompt: list[int], num_tokens: int, how: Sampling, seed: int, tokenizer: Vocabulary
) -> Iterator[int]:
    """Yield up to `num_tokens` new tokens, ending after one that ends a text; the same seed gives the same tokens.

    Only tokens that the tokenizer has are drawn, also where the model's vocabulary is larger. A router's capacity is off.

    Raises:
        ConfigError: for an empty prompt, or a model that cannot generate.
    """
    if not prompt:
        raise ConfigError("prompt: no tokens; give at least one character")
    generator = torch.Generator().manual_seed(seed)
    device = model.embed.weight.device
    cache = model.new_cache(1, len(prompt) + num_tokens)
    new = prompt
    for _ in range(num_tokens):
        with dropless(model):
            x_BLD, _ = model.hidden(torch.tensor([new], device=device), cache)
        token = sample(model.head_weight[: tokenizer.vocab_size] @ x_BLD[0, -1], how, generator)
        yield token
        if token in tokenizer.ends:
            return
        new = [token]
