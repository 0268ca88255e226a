"""Perplexity and bits per byte of any text, in all and per domain."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from hmoe.data.long_text import encode_text
from hmoe.data.tokenizer import Tokenizer
from hmoe.errors import DataError
from hmoe.model.likelihood import text_nll
from hmoe.model.transformer import Transformer

Report = Callable[[int, int], None]


def _silent(documents: int, tokens: int) -> None:
    """Report to nobody."""


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts texts; every token of a text is predicted, the first from the separator.

    Attributes:
        nats: negative log-likelihood of all tokens, summed.
        bits_per_byte: comparable between tokenizers, perplexity is not.
    """

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    nats: float = 0.0

    @property
    def nats_per_token(self) -> float:
        """Mean negative log-likelihood."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(nats per token)."""
        return math.exp(min(self.nats_per_token, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte of text."""
        return self.nats / math.log(2) / self.text_bytes

    def __add__(self, other: "Perplexity") -> "Perplexity":
        return Perplexity(
            self.documents + other.documents,
            self.tokens + other.tokens,
            self.text_bytes + other.text_bytes,
            self.nats + other.nats,
        )


def perplexity(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    window: int,
    report: Report = _silent,
    begin: Sequence[int] = (),
) -> Perplexity:
    """Perplexity of texts, each on its own, in windows of `window` tokens that advance by half.

    `report` is told the documents and tokens done after each document.

    Raises:
        DataError: if there is no text.
    """
    return total(by_domain(model, tokenizer, (("", text) for text in texts), window, report, begin))


def by_domain(
    model: Transformer,
    tokenizer: Tokenizer,
    documents: Iterable[tuple[str, str]],
    window: int,
    report: Report = _silent,
    begin: Sequence[int] = (),
) -> dict[str, Perplexity]:
    """Perplexity of (domain, text) documents per domain, in the order in which domains first come.

    A text's first token is predicted from `begin`, the tokens that every text of the model begins with, or from the separator.

    Raises:
        DataError: if there is no text.
    """
    found: dict[str, Perplexity] = {}
    before = list(begin) or [tokenizer.separator]
    count = tokens = 0
    for domain, text in documents:
        ids = encode_text(tokenizer, text)
        if not ids:
            continue
        nats = text_nll(model, [*before, *ids], window, len(before))
        one = Perplexity(1, len(ids), len(text.encode()), nats)
        found[domain] = found.get(domain, Perplexity()) + one
        count, tokens = count + 1, tokens + one.tokens
        report(count, tokens)
    if not found:
        raise DataError("nothing to evaluate: the text is empty")
    return found


def total(domains: dict[str, Perplexity]) -> Perplexity:
    """Of all domains together."""
    return sum(domains.values(), Perplexity())
