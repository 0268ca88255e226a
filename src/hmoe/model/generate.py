"""Text from a model, token by token: a key/value cache, one pass per token, and a draw from its logits."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from hmoe.errors import ConfigError, NonFiniteError
from hmoe.model.transformer import Transformer, without_capacities


class Vocabulary(Protocol):
    """What generation needs of a tokenizer.

    Attributes:
        vocab_size: tokens that it has; a model's vocabulary may be larger.
        ends: tokens that end a text.
    """

    vocab_size: int
    ends: tuple[int, ...]


@dataclass(frozen=True)
class Sampling:
    """Options of drawing the next token; temperature first, then top_k, then top_p.

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


def sample_token(logits_V: torch.Tensor, options: Sampling, generator: torch.Generator) -> int:
    """Draw one token from logits; the generator is on the CPU, whatever device they are on.

    Raises:
        NonFiniteError: if the logits hold NaN or +infinity.
    """
    logits_V = logits_V.double()
    if not torch.isfinite(logits_V.max()):
        raise NonFiniteError("generate: the model's logits are NaN or infinite")
    if options.temperature == 0:
        return int(logits_V.argmax())
    # The largest is subtracted first: divided by a tiny temperature, logits overflow.
    scaled_V = (logits_V - logits_V.max()) / options.temperature
    sorted_V, order_V = torch.sort(scaled_V, descending=True, stable=True)
    kept = sorted_V[: options.top_k] if options.top_k else sorted_V
    probs = kept.softmax(0)
    # A token is kept by the sum of those before it, so that the one that reaches p is kept too.
    probs = probs * (probs.cumsum(0) - probs < options.top_p)
    # Drawn on the CPU: the same seed gives the same text on every device.
    return int(order_V[torch.multinomial(probs.cpu(), 1, generator=generator)])


@torch.inference_mode()
def generate_tokens(
    model: Transformer,
    prompt: list[int],
    num_tokens: int,
    options: Sampling,
    seed: int,
    tokenizer: Vocabulary,
) -> Iterator[int]:
    """Yield up to `num_tokens` new tokens, ending after one that ends a text; a seed fixes the text.

    Only tokens that the tokenizer has are drawn, also where the model's vocabulary is larger. Routers have no
    capacity here.

    Raises:
        ConfigError: for an empty prompt, or a model that cannot generate.
    """
    if not prompt:
        raise ConfigError("prompt: no tokens; give at least one character")
    generator = torch.Generator().manual_seed(seed)
    device = model.embed.weight.device
    cache = model.new_cache(1, len(prompt) + num_tokens)
    # The first pass reads the whole prompt, every later one the token that was drawn last.
    new = prompt
    for _ in range(num_tokens):
        # Entered for every token: between two of them the caller may use the model otherwise.
        with without_capacities(model):
            x_BLD, _ = model.hidden(torch.tensor([new], device=device), cache)
        token = sample_token(model.head_weight[: tokenizer.vocab_size] @ x_BLD[0, -1], options, generator)
        yield token
        if token in tokenizer.ends:
            return
        new = [token]
