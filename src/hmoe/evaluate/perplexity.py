"""Perplexity and bits per byte of any text."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hmoe.data.tokenizer import Tokenizer
from hmoe.errors import DataError
from hmoe.model.likelihood import text_nll
from hmoe.model.transformer import Transformer


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts texts; every token of a text is predicted, the first from the separator.

    Attributes:
        nats: negative log-likelihood of all tokens, summed.
        bits_per_byte: comparable between tokenizers, perplexity is not.
    """

    documents: int
    tokens: int
    text_bytes: int
    nats: float

    @property
    def perplexity(self) -> float:
        """exp(nats per token)."""
        return math.exp(min(self.nats / self.tokens, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte of text."""
        return self.nats / math.log(2) / self.text_bytes


def perplexity(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    window: int,
    report: Callable[[int, int], None] = lambda documents, tokens: None,
) -> Perplexity:
    """Perplexity of texts, each on its own, in windows of `window` tokens that advance by half.

    `report` is told the documents and tokens done after each document.

    Raises:
        DataError: if there is no text.
    """
    documents = tokens = size = 0
    nats = 0.0
    for text in texts:
        ids = tokenizer.encode([text])[0]
        if not ids:
            continue
        nats += text_nll(model, [tokenizer.separator, *ids], window)
        documents, tokens, size = documents + 1, tokens + len(ids), size + len(text.encode())
        report(documents, tokens)
    if not tokens:
        raise DataError("nothing to evaluate: the text is empty")
    return Perplexity(documents, tokens, size, nats)
