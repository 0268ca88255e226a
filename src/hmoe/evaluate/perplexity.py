"""Measure perplexity and bits per byte of any text, in all and per domain."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from itertools import chain

from hmoe.data.long_text import encode_text
from hmoe.data.tokenizer import Tokenizer
from hmoe.errors import DataError
from hmoe.model.likelihood import score_text
from hmoe.model.transformer import Transformer
from hmoe.parallel.workers import ONE_WORKER, Workers

PerplexityReport = Callable[[int, int], None]  # called with the documents and tokens done


def _ignore(documents: int, tokens: int) -> None:
    """Report to nobody."""


@dataclass(frozen=True)
class TextPerplexity:
    """How well a model predicts texts; every token is predicted, the first from what texts begin with.

    Bits per byte can be compared between tokenizers, perplexity cannot. Each predicted token counts the hidden units
    of the one token that it is predicted from, in the window that predicts it: what windows read again as context
    counts once, and nothing is padded.

    Attributes:
        documents: number of texts.
        tokens: number of their tokens.
        text_bytes: UTF-8 bytes of the texts.
        nats: negative log-likelihood of all tokens, summed.
        units: hidden units activated, one token read for each that is predicted, summed over MoE layers.
    """

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    nats: float = 0.0
    units: float = 0.0

    @property
    def nats_per_token(self) -> float:
        """Mean negative log-likelihood of a token, in nats."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """Perplexity, exp(nats per token)."""
        return math.exp(min(self.nats_per_token, 700.0))  # exp(710) is above what a float64 holds

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte of text."""
        return self.nats / math.log(2) / self.text_bytes

    def __add__(self, other: "TextPerplexity") -> "TextPerplexity":
        return TextPerplexity(
            self.documents + other.documents,
            self.tokens + other.tokens,
            self.text_bytes + other.text_bytes,
            self.nats + other.nats,
            self.units + other.units,
        )


def measure_perplexity(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    window: int,
    report: PerplexityReport = _ignore,
    begin: Sequence[int] = (),
) -> TextPerplexity:
    """Measure the perplexity of texts, each on its own, in windows of `window` tokens that advance by half.

    Args:
        model: the model, in evaluation mode.
        tokenizer: the model's tokenizer.
        texts: the texts; those without tokens are passed over.
        window: tokens read at once.
        report: called with the texts and tokens that are done, several times in a long text.
        begin: tokens that every text of the model begins with; none: the separator.

    Raises:
        DataError: if there is no text.
    """
    return sum_perplexities(
        measure_perplexity_by_domain(model, tokenizer, (("", text) for text in texts), window, report, begin)
    )


def measure_perplexity_by_domain(
    model: Transformer,
    tokenizer: Tokenizer,
    documents: Iterable[tuple[str, str]],
    window: int,
    report: PerplexityReport = _ignore,
    begin: Sequence[int] = (),
    workers: Workers = ONE_WORKER,
) -> dict[str, TextPerplexity]:
    """Measure the perplexity of (domain, text) documents per domain, in the order of first appearance.

    The arguments are those of `measure_perplexity`, and the processes that share the documents.

    Raises:
        DataError: if there is no text.
    """
    before = list(begin) or [tokenizer.separator]  # what the first token of a text is predicted from
    documents_done = tokens_done = 0

    def measure(text: str, ids: list[int]) -> TextPerplexity:
        nonlocal documents_done, tokens_done
        tokens_before = tokens_done
        nats = units = 0.0
        for part in score_text(model, [*before, *ids], window, len(before)):
            nats, units, tokens_done = nats + part.nats, units + part.units, tokens_done + part.tokens
            documents_done += tokens_done == tokens_before + len(ids)
            report(documents_done, tokens_done)
        return TextPerplexity(1, len(ids), len(text.encode()), nats, units)

    results = (
        (place, domain, measure(text, ids))
        for place, domain, text in _take_share(documents, workers)
        if (ids := encode_text(tokenizer, text))
    )
    domains: dict[str, TextPerplexity] = {}
    for domain, result in _join_shares(results, workers):
        domains[domain] = domains.get(domain, TextPerplexity()) + result
    if not domains:
        raise DataError("nothing to evaluate: the text is empty")
    return domains


def _take_share(documents: Iterable[tuple[str, str]], workers: Workers) -> Iterator[tuple[int, str, str]]:
    """Yield this process's documents, with their places among all; each has about as many characters."""
    sizes = [0] * workers.size
    for place, (domain, text) in enumerate(documents):
        owner = sizes.index(min(sizes))
        sizes[owner] += len(text)
        if owner == workers.rank:
            yield place, domain, text


def _join_shares(
    results: Iterable[tuple[int, str, TextPerplexity]], workers: Workers
) -> Iterator[tuple[str, TextPerplexity]]:
    """Yield what was measured of the documents of all processes, in the order of the text: sums have one order."""
    if workers.size == 1:
        yield from ((domain, result) for _, domain, result in results)
        return
    with workers.together():
        own = [(place, domain, astuple(result)) for place, domain, result in results]
    for _, domain, values in sorted(chain.from_iterable(workers.gather_values(own))):
        yield domain, TextPerplexity(*values)


def sum_perplexities(domains: dict[str, TextPerplexity]) -> TextPerplexity:
    """Return the perplexity of all domains together."""
    return sum(domains.values(), TextPerplexity())
