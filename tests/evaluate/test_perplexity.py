import math

import pytest
import torch

from hmoe import DataError
from hmoe.config.recipes import check_model
from hmoe.data.tokenizer import ByteTokenizer
from hmoe.evaluate.perplexity import (
    TextPerplexity,
    measure_perplexity,
    measure_perplexity_by_domain,
    sum_perplexities,
)
from hmoe.model.transformer import build_transformer
from hmoe.specs.plain import to_plain
from tests.threads import ThreadWorkers, work_together

CONFIG = check_model(
    {
        "dim": 16,
        "layers": 1,
        "heads": 2,
        "vocab": 257,
        "moe": {"widths": [8, 24], "router": {"name": "top_k", "k": 1}},
    }
)


def test_perplexity_is_the_chain_rule_over_every_token() -> None:
    model, tokenizer = build_transformer(CONFIG, 0, torch.float64), ByteTokenizer()
    texts = ["héllo", "", "world"]
    result = measure_perplexity(model, tokenizer, texts, window=64)
    nats = 0.0
    for text in texts:
        ids = [256, *text.encode()]
        for i in range(1, len(ids)):
            nats -= torch.log_softmax(model(torch.tensor([ids[:i]]))[0][0, -1], 0)[ids[i]].item()
    assert result.nats == pytest.approx(nats)
    assert (result.documents, result.tokens, result.text_bytes) == (2, 11, 11)
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / 11)
    assert result.perplexity == pytest.approx(math.exp(nats / 11))


def test_a_model_that_knows_nothing_needs_eight_bits_per_byte() -> None:
    model = build_transformer(CONFIG, 0, torch.float64)
    with torch.no_grad():
        model.head_weight.zero_()
    result = measure_perplexity(model, ByteTokenizer(), ["any text"], window=8)
    assert result.bits_per_byte == pytest.approx(math.log2(257))


def test_no_text_is_an_error() -> None:
    with pytest.raises(DataError, match="nothing to evaluate"):
        measure_perplexity(build_transformer(CONFIG, 0), ByteTokenizer(), ["", ""], window=8)


def test_domains_add_up() -> None:
    model, tokenizer = build_transformer(CONFIG, 0, torch.float64), ByteTokenizer()
    documents = [("prose", "one text"), ("code", "x = 1"), ("prose", "another"), ("code", ""), ("none", "")]
    told: list[tuple[int, int]] = []
    domains = measure_perplexity_by_domain(
        model, tokenizer, documents, 64, lambda *counts: told.append(counts)
    )
    assert list(domains) == ["prose", "code"]
    for domain in domains:
        alone = measure_perplexity(model, tokenizer, [text for name, text in documents if name == domain], 64)
        assert domains[domain] == alone
    together = measure_perplexity(model, tokenizer, [text for _, text in documents], 64)
    assert sum_perplexities(domains).nats == pytest.approx(together.nats)
    assert (
        sum_perplexities(domains).documents,
        sum_perplexities(domains).tokens,
        sum_perplexities(domains).text_bytes,
    ) == (3, 20, 20)
    assert told == [(1, 8), (2, 13), (3, 20)]
    with pytest.raises(DataError, match="nothing to evaluate"):
        measure_perplexity_by_domain(model, tokenizer, [("a", "")], 8)


@pytest.mark.parametrize("window", [4, 5, 64])
def test_activated_units_are_those_of_the_token_that_each_is_predicted_from(window: int) -> None:
    """Counted slowly: each token alone at the end of what its window lets it see."""
    tree = {**to_plain(CONFIG), "layers": 2}
    tree["moe"] = {"widths": [4, 8, 20], "router": {"name": "top_p", "p": 0.6}}
    config = check_model(tree)
    model, tokenizer, begin = build_transformer(config, 0, torch.float64), ByteTokenizer(), [256, 7]
    texts = ["héllo wörld", "", "a", "another text"]
    result = measure_perplexity(model, tokenizer, texts, window, begin=begin)
    units = 0.0
    for text in texts:
        ids = [*begin, *text.encode()]
        for target in range(len(begin), len(ids) if text else 0):
            # The first of the windows, half a window apart, that reach the target.
            start = next(s for s in range(0, len(ids), window // 2) if s + window >= target)
            routings = model(torch.tensor([ids[start:target]]))[1]
            units += sum(float(routing.width_T((4, 8, 20))[-1]) for routing in routings)
    assert result.units == units
    assert result.tokens == sum(len(text.encode()) for text in texts)
    assert result.units > 2 * 4 * result.tokens  # more than the smallest expert alone


def test_a_long_text_is_reported_while_it_is_read() -> None:
    told: list[tuple[int, int]] = []
    model = build_transformer(CONFIG, 0)
    measure_perplexity(model, ByteTokenizer(), ["0123456789", "a"], 4, lambda *counts: told.append(counts))
    assert told == [(0, 4), (0, 6), (0, 8), (1, 10), (2, 11)]


@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_measure_the_bits_of_one(size: int) -> None:
    model, tokenizer = build_transformer(CONFIG, 0), ByteTokenizer()
    documents = [("ab"[i % 2], f"text {i} " * (i * 5 % 7)) for i in range(11)]
    alone = measure_perplexity_by_domain(model, tokenizer, documents, 16)
    read: list[int] = []

    def measure(workers: ThreadWorkers) -> dict[str, TextPerplexity]:
        counts: list[tuple[int, int]] = [(0, 0)]
        domains = measure_perplexity_by_domain(
            model, tokenizer, documents, 16, lambda *done: counts.append(done), (), workers
        )
        read.append(counts[-1][1])
        return domains

    assert work_together(size, measure) == [alone] * size
    assert all(read)
    assert sum(read) == sum(domain.tokens for domain in alone.values())


def test_several_processes_that_have_no_text_all_say_so() -> None:
    model = build_transformer(CONFIG, 0)
    errors = work_together(
        2, lambda w: measure_perplexity_by_domain(model, ByteTokenizer(), [("", "")], 16, workers=w)
    )
    assert all(isinstance(error, DataError) for error in errors)
