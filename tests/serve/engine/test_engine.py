import pytest
import torch

from hmoe.model.generate import Sampling, generate_tokens
from hmoe.model.likelihood import Candidate, score_candidates
from hmoe.serve.engine.engine import Engine
from hmoe.serve.engine.types import SequenceTask
from tests.serve.helpers import (
    CONTEXT,
    GREEDY,
    NO_END,
    TOKENIZER,
    TOP_P,
    Asked,
    ask,
    engine,
    greedy,
    model,
    prompt,
)


def test_greedy_tokens_are_those_of_generate() -> None:
    built = model()
    started = engine(built)
    for length in (1, 7, 40):
        ids = prompt(length, length)
        with torch.no_grad():
            expected = list(generate_tokens(built, list(ids), 12, GREEDY, 0, TOKENIZER))
        answer = ask(started, greedy(ids, bias={}))[0]
        assert answer.ids == expected
        assert answer.text == TOKENIZER.decode(expected)


@pytest.mark.parametrize(
    "changes", [{}, {"moe": None, "ffn": 64}, {"qk_norm": "head"}, {"kv_heads": 4}], ids=str
)
def test_a_sequence_among_others_is_as_alone(changes: dict[str, object]) -> None:
    """More sequences than slots, of different lengths, that start and end at different steps."""
    started = engine(model(**changes), max_batch=4, prefill_tokens=16)
    asks = [greedy(prompt(i, 1 + 7 * i), max_tokens=3 + 5 * (i % 3)) for i in range(9)]
    alone = [ask(started, task)[0] for task in asks]
    together = [asked.wait()[0] for asked in [Asked(started, [task]) for task in asks]]
    as_one_request = ask(started, *asks)
    for single, *others in zip(alone, together, as_one_request, strict=True):
        for other in others:
            assert other.ids == single.ids
            assert other.finish == single.finish == "length"
            for a, b in zip(single.entries, other.entries, strict=True):
                assert a.logprob == pytest.approx(b.logprob, abs=1e-5)
    assert started.load() == {"open": 0, "waiting": 0, "running": 0}


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_a_prompt_in_chunks_is_the_prompt_in_one(chunk: int) -> None:
    built = model()
    ids = prompt(1, 61)
    whole = ask(engine(built, prefill_tokens=CONTEXT), greedy(ids, echo=True))[0]
    parts = ask(engine(built, prefill_tokens=chunk), greedy(ids, echo=True))[0]
    assert parts.ids == whole.ids
    for a, b in zip(whole.prompt_entries[1:], parts.prompt_entries[1:], strict=True):
        assert a.token == b.token
        assert a.logprob == pytest.approx(b.logprob, abs=1e-5)


def test_prompt_logprobs_are_those_of_the_scorer() -> None:
    built = model()
    ids = prompt(2, 50)
    answer = ask(engine(built, prefill_tokens=16), greedy(ids, echo=True, logprobs=1, max_tokens=0))[0]
    assert [entry.token for entry in answer.prompt_entries] == list(ids)
    assert answer.prompt_entries[0].logprob is None
    assert answer.text == ""
    expected = score_candidates(built, [[Candidate(ids, 20)]]).groups[0][0]
    assert -sum(entry.logprob or 0 for entry in answer.prompt_entries[-20:]) == pytest.approx(
        expected.nll, abs=1e-4
    )
    best = [entry.top[0] for entry in answer.prompt_entries[1:]]
    assert all(len(entry.top) == 1 for entry in answer.prompt_entries[1:])
    assert all(lp >= (e.logprob or 0) for (_, lp), e in zip(best, answer.prompt_entries[1:], strict=True))


def test_thresholds_of_requests_in_one_batch_are_those_of_models_with_that_router() -> None:
    shared = engine(model(TOP_P), prefill_tokens=32)
    thresholds = [0.2, 0.6, 0.9, 1.0]
    asks = [greedy(prompt(5, 30), top_p_experts=p, echo=True) for p in thresholds]
    asks.append(greedy(prompt(5, 30), echo=True))
    answers = ask(shared, *asks)
    for p, answer in zip([*thresholds, 0.6], answers, strict=True):
        own = ask(engine(model({"name": "top_p", "p": p})), greedy(prompt(5, 30), echo=True))[0]
        assert answer.ids == own.ids
        assert answer.used == own.used
        for a, b in zip(
            answer.prompt_entries[1:] + answer.entries, own.prompt_entries[1:] + own.entries, strict=True
        ):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-5)
    units = [answer.used.units for answer in answers[:4] if answer.used]
    assert units == sorted(units)
    assert (
        units[0] < units[-1] == 41 * 2 * (16 + 48 + 32 + 24)
    )  # all experts, both layers; the last token is not read


def test_used_counts_what_was_activated(running: Engine) -> None:
    used = ask(running, greedy(prompt(0, 10), max_tokens=5))[0].used
    assert used is not None
    assert (used.prompt_tokens, used.new_tokens, used.rows) == (10, 5, 14)
    assert used.experts == 14 * 2 * 2
    assert 14 * 2 * (16 + 24) <= used.units <= 14 * 2 * (48 + 32)


def test_the_same_seed_gives_the_same_text_whatever_else_runs(running: Engine) -> None:
    samplings = [Sampling(1.0), Sampling(0.7, 20), Sampling(1.2, 0, 0.8), Sampling(0.9, 50, 0.9)]
    asks = [SequenceTask(prompt(3, 20), 30, sampling, seed=7, bias=NO_END) for sampling in samplings]
    alone = [ask(running, task)[0].text for task in asks]
    noise = [SequenceTask(prompt(100 + i, 3 * i + 1), 25, samplings[i % 4], seed=i) for i in range(12)]
    mixed = [Asked(running, [task]) for pair in zip(noise, asks * 3, strict=True) for task in pair]
    assert [asked.wait()[0].text for asked in mixed[1::2]] == alone * 3
    assert (
        ask(running, SequenceTask(prompt(3, 20), 30, samplings[0], seed=8, bias=NO_END))[0].text != alone[0]
    )


def test_sampling_follows_the_distribution(running: Engine) -> None:
    """Frequencies of first tokens against the told probabilities, within five standard errors."""
    told = ask(running, SequenceTask(prompt(1, 5), 1, GREEDY, logprobs=5, bias=NO_END))[0].entries[0]
    draws = ask(
        running, *(SequenceTask(prompt(1, 5), 1, Sampling(1.0), seed=i, logprobs=0) for i in range(2000))
    )
    tokens = [answer.ids[0] for answer in draws if answer.ids]
    for token, logprob in told.top:
        p = float(torch.tensor(logprob).exp())
        assert tokens.count(token) / 2000 == pytest.approx(p, abs=5 * (p * (1 - p) / 2000) ** 0.5)
    few = ask(
        running,
        *(SequenceTask(prompt(1, 5), 1, Sampling(1.0, top_k=2), seed=i, logprobs=0) for i in range(200)),
    )
    assert {answer.ids[0] for answer in few} == {token for token, _ in told.top[:2]}


def test_stops_end_the_text_before_them_and_may_span_tokens(running: Engine) -> None:
    ids = prompt(9, 12)
    ascii_only = {**NO_END, **{i: -1e9 for i in (*range(32), *range(127, 256))}}
    free = ask(running, greedy(ids, bias=ascii_only, max_tokens=40, sampling=Sampling(1.0)))[0]
    stop = free.text[10:13]
    for stream in (False, True):
        asked = greedy(
            ids, bias=ascii_only, max_tokens=40, sampling=Sampling(1.0), stops=("never", stop), stream=stream
        )
        answer = ask(running, asked)[0]
        assert answer.finish == "stop"
        assert answer.text == free.text[: free.text.index(stop)]
        assert len(answer.entries) == len(answer.text)
        assert (answer.events > 1) == stream


def test_biases_and_penalties(running: Engine) -> None:
    assert ask(running, greedy(prompt(1, 4), bias={65: 1e9, **NO_END}))[0].text == "A" * 12
    bias = {65: 1000.0, 66: 900.0, 67: 850.0}
    assert (
        ask(running, greedy(prompt(1, 4), bias=bias, presence_penalty=200.0, max_tokens=3))[0].text == "ABC"
    )
    answer = ask(running, greedy(prompt(1, 4), bias=bias, frequency_penalty=60.0, max_tokens=6))[0]
    assert answer.text == "AABACB"


def test_the_separator_ends_a_text(running: Engine) -> None:
    answer = ask(running, greedy(prompt(1, 4), bias={256: 1e9}))[0]
    assert (answer.text, answer.finish) == ("", "stop")
    assert answer.used is not None
    assert answer.used.new_tokens == 1


def test_streamed_text_is_the_text_also_within_characters(running: Engine) -> None:
    """Bytes of characters and broken bytes come one token at a time."""
    letters = {**{i: 1e6 for i in "é漢\U0001f600a".encode()}, 0xFF: 1e6}
    asks = [
        SequenceTask(prompt(1, 3), 60, Sampling(1.0), seed=4, bias=letters, logprobs=0, stream=s)
        for s in (True, False)
    ]
    streamed, whole = ask(running, *asks)
    assert streamed.text == whole.text == TOKENIZER.decode(whole.ids)
    for a, b in zip(streamed.entries, whole.entries, strict=True):
        assert (a.token, a.offset) == (b.token, b.offset)
    assert "\ufffd" in whole.text
