import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from hmoe import ConfigError
from hmoe.model.generate import Sampling, generate
from hmoe.model.likelihood import Candidate, score
from hmoe.model.transformer import Transformer
from hmoe.serve.engine.types import Ask
from hmoe.serve.engine.engine import BusyError, ClosedError, Engine
from hmoe.specs.model import ModelSpec
from tests.serve.helpers import CONTEXT, TOKENIZER, TOP_P, Asked, ask, config, engine, model, prompt

GREEDY = Sampling(temperature=0)
NO_END = {TOKENIZER.separator: -1e9}


@pytest.fixture
def running() -> Iterator[Engine]:
    with engine() as started:
        yield started


def greedy(ids: tuple[int, ...], **changes: object) -> Ask:
    return Ask(ids, **{"max_tokens": 12, "sampling": GREEDY, "logprobs": 3, "bias": NO_END, **changes})  # type: ignore[arg-type]


def test_greedy_tokens_are_those_of_generate() -> None:
    built = model()
    started = engine(built)
    for length in (1, 7, 40):
        ids = prompt(length, length)
        with torch.no_grad():
            expected = list(generate(built, list(ids), 12, GREEDY, 0, TOKENIZER))
        answer = ask(started, greedy(ids, bias={}))[0]
        assert answer.ids == expected
        assert answer.text == TOKENIZER.decode(expected)


@pytest.mark.parametrize("changes", [{}, {"moe": None, "ffn": 64}, {"qk_norm": "head"}, {"kv_heads": 4}], ids=str)
def test_a_sequence_among_others_is_as_alone(changes: dict[str, object]) -> None:
    """More sequences than slots, of different lengths, that start and end at different steps."""
    started = engine(model(**changes), max_batch=4, prefill_tokens=16)
    asks = [greedy(prompt(i, 1 + 7 * i), max_tokens=3 + 5 * (i % 3)) for i in range(9)]
    alone = [ask(started, one)[0] for one in asks]
    together = [asked.wait()[0] for asked in [Asked(started, [one]) for one in asks]]
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
    expected = score(built, [[Candidate(ids, 20)]]).groups[0][0]
    assert -sum(entry.logprob or 0 for entry in answer.prompt_entries[-20:]) == pytest.approx(expected.nll, abs=1e-4)
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
        for a, b in zip(answer.prompt_entries[1:] + answer.entries, own.prompt_entries[1:] + own.entries, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-5)
    units = [answer.used.units for answer in answers[:4] if answer.used]
    assert units == sorted(units)
    assert units[0] < units[-1] == 41 * 2 * (16 + 48 + 32 + 24)  # all experts, both layers; the last token is not read


def test_used_counts_what_was_activated(running: Engine) -> None:
    used = ask(running, greedy(prompt(0, 10), max_tokens=5))[0].used
    assert used is not None
    assert (used.prompt_tokens, used.new_tokens, used.rows) == (10, 5, 14)
    assert used.experts == 14 * 2 * 2
    assert 14 * 2 * (16 + 24) <= used.units <= 14 * 2 * (48 + 32)


def test_the_same_seed_gives_the_same_text_whatever_else_runs(running: Engine) -> None:
    samplings = [Sampling(1.0), Sampling(0.7, 20), Sampling(1.2, 0, 0.8), Sampling(0.9, 50, 0.9)]
    asks = [Ask(prompt(3, 20), 30, sampling, seed=7, bias=NO_END) for sampling in samplings]
    alone = [ask(running, one)[0].text for one in asks]
    noise = [Ask(prompt(100 + i, 3 * i + 1), 25, samplings[i % 4], seed=i) for i in range(12)]
    mixed = [Asked(running, [one]) for pair in zip(noise, asks * 3, strict=True) for one in pair]
    assert [asked.wait()[0].text for asked in mixed[1::2]] == alone * 3
    assert ask(running, Ask(prompt(3, 20), 30, samplings[0], seed=8, bias=NO_END))[0].text != alone[0]


def test_sampling_follows_the_distribution(running: Engine) -> None:
    """Frequencies of first tokens against the told probabilities, within five standard errors."""
    told = ask(running, Ask(prompt(1, 5), 1, GREEDY, logprobs=5, bias=NO_END))[0].entries[0]
    draws = ask(running, *(Ask(prompt(1, 5), 1, Sampling(1.0), seed=i, logprobs=0) for i in range(2000)))
    tokens = [answer.ids[0] for answer in draws if answer.ids]
    for token, logprob in told.top:
        p = float(torch.tensor(logprob).exp())
        assert tokens.count(token) / 2000 == pytest.approx(p, abs=5 * (p * (1 - p) / 2000) ** 0.5)
    few = ask(running, *(Ask(prompt(1, 5), 1, Sampling(1.0, top_k=2), seed=i, logprobs=0) for i in range(200)))
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
    assert ask(running, greedy(prompt(1, 4), bias=bias, presence_penalty=200.0, max_tokens=3))[0].text == "ABC"
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
    asks = [Ask(prompt(1, 3), 60, Sampling(1.0), seed=4, bias=letters, logprobs=0, stream=s) for s in (True, False)]
    streamed, whole = ask(running, *asks)
    assert streamed.text == whole.text == TOKENIZER.decode(whole.ids)
    for a, b in zip(streamed.entries, whole.entries, strict=True):
        assert (a.token, a.offset) == (b.token, b.offset)
    assert "\ufffd" in whole.text


def test_cancelled_work_ends_within_a_step(running: Engine) -> None:
    asked = Asked(running, [greedy(prompt(1, 4), max_tokens=90, stream=True)])
    assert asked.first.wait(10)
    waiting = [Asked(running, [greedy(prompt(1, 4), max_tokens=90)]) for _ in range(20)]
    steps = running.steps
    for one in (*waiting, asked):
        one.job.cancel()
    assert {one.wait()[0].failure.code for one in (*waiting, asked)} == {"cancelled"}  # type: ignore[union-attr]
    assert running.steps <= steps + 90
    assert running.failures == 0
    assert ask(running, greedy(prompt(1, 4)))[0].finish == "length"


class Slow:
    """A model of which every pass takes some time; `gate` lets passes through."""

    def __init__(self, built: Transformer) -> None:
        self.config: ModelSpec = built.config
        self._built = built
        self.gate = threading.Event()

    def __getattr__(self, name: str) -> object:
        return getattr(self._built, name)

    def hidden(self, *arguments: object) -> object:
        self.gate.wait(30)
        return self._built.hidden(*arguments)  # type: ignore[arg-type]


def test_the_queue_is_bounded_and_a_deadline_holds_also_in_it() -> None:
    slow = Slow(model())
    started = Engine(slow, TOKENIZER, engine().limits.__class__(2, 3, CONTEXT, 16))  # type: ignore[arg-type]
    asked = [Asked(started, [greedy(prompt(1, 4))], seconds=0.05 if i == 4 else 60) for i in range(5)]
    with pytest.raises(BusyError, match="5 requests are open"):
        Asked(started, [greedy(prompt(1, 4))])
    time.sleep(0.1)
    slow.gate.set()
    answers = [one.wait()[0] for one in asked]
    assert [answer.finish for answer in answers] == ["length"] * 4 + [None]
    assert answers[4].failure is not None
    assert answers[4].failure.status == 504
    assert ask(started, greedy(prompt(1, 4)))[0].ids == answers[0].ids


def test_prompts_must_fit(running: Engine) -> None:
    for length, max_tokens in ((0, 1), (CONTEXT, 1), (CONTEXT + 1, 0), (10, CONTEXT - 9)):
        with pytest.raises(ConfigError, match="prompt: "):
            Asked(running, [greedy(prompt(1, length), max_tokens=max_tokens)])
    assert len(ask(running, greedy(prompt(1, CONTEXT - 1), max_tokens=1))[0].ids) == 1
    assert ask(running, greedy(prompt(1, CONTEXT), max_tokens=0))[0].finish == "length"
    for wrong in ((-1, 5), (5, 300)):
        with pytest.raises(ConfigError, match="from 0 to 299"):
            Asked(running, [greedy(wrong)])
    with pytest.raises(ConfigError, match=r"logit_bias: .* from 0 to 256"):
        Asked(running, [greedy(prompt(1, 4), bias={257: 1.0})])
    with pytest.raises(ConfigError, match="top_p_experts: "):
        Asked(running, [greedy(prompt(1, 4), top_p_experts=0.5)])


POISON = 299  # a token of the model that the tokenizer does not have


@pytest.mark.parametrize("kind", ["nan", "infinite", "raises"])
def test_a_request_that_the_model_fails_on_fails_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built = model()
    if kind == "raises":
        plain = built.hidden

        def hidden(tokens_BL: torch.Tensor, context: object) -> object:
            if (tokens_BL == POISON).any():
                raise RuntimeError("an expert failed")
            return plain(tokens_BL, context)  # type: ignore[arg-type]

        monkeypatch.setattr(built, "hidden", hidden)
    else:
        built.embed.weight.data[POISON] = float("nan" if kind == "nan" else "inf")
    started = engine(built, max_batch=4, prefill_tokens=8)
    good = [greedy(prompt(i, 3 + 9 * i), max_tokens=15) for i in range(6)]
    alone = [ask(started, one)[0].ids for one in good]
    bad = greedy((*prompt(1, 20), POISON, *prompt(2, 30)))
    late = greedy(prompt(8, 20), max_tokens=30)
    order = [bad, *good[:3], bad, late, *good[3:], bad]
    answers = [asked.wait()[0] for asked in [Asked(started, [one]) for one in order]]
    assert [a.failure.status if a.failure else 200 for a in answers] == [
        500,
        200,
        200,
        200,
        500,
        200,
        200,
        200,
        200,
        500,
    ]
    assert [answers[i].ids for i in (1, 2, 3, 6, 7, 8)] == alone
    assert started.failures == 3
    assert [ask(started, one)[0].ids for one in good] == alone
    assert started.alive


def test_closing_lets_work_end_or_ends_it() -> None:
    started = engine()
    asked = [Asked(started, [greedy(prompt(1, 4), max_tokens=20)]) for _ in range(12)]
    started.close()
    with pytest.raises(ClosedError):
        Asked(started, [greedy(prompt(1, 4))])
    assert all(one.wait()[0].finish == "length" for one in asked)
    started.join(10)
    assert not started.alive
    started = engine()
    asked = [Asked(started, [greedy(prompt(1, 4), max_tokens=90)]) for _ in range(12)]
    started.close(give_up=True)
    assert {one.wait()[0].failure.status for one in asked if one.wait()[0].failure} == {503}  # type: ignore[union-attr]
    started.join(10)
    assert not started._thread.is_alive()


def test_slots_larger_than_memory_are_a_user_error() -> None:
    with pytest.raises(ConfigError, match="lower one of them"):
        engine(context_length=2**40)


def test_a_dynamic_rotary_scale_limits_the_context_to_where_it_is_constant() -> None:
    scaling = {"kind": "dynamic", "factor": 2.0, "original_length": 32}
    started = engine(model(rope_scaling=scaling))
    assert started.capacity == 32
    assert TOP_P["p"] == engine(model(TOP_P)).top_p
    assert config().moe is not None


def test_a_program_may_end_while_the_engine_computes() -> None:
    """As a context it has ended before the interpreter does; a thread inside PyTorch would abort the process."""
    program = """
from hmoe.serve.engine.types import Ask
from tests.serve.helpers import engine, prompt

try:
    with engine() as started:
        started.submit([Ask(prompt(1, 8), max_tokens=80)], lambda event: None, 60)
        raise SystemExit(5)
finally:
    assert not started._thread.is_alive()  # the abort itself is a race
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 5, found.stderr
