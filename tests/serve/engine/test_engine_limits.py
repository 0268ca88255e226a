"""What the engine refuses and ends: too much at a time, too late, cancelled, failing, closing."""

import subprocess
import sys
import threading
import time

import pytest
import torch

from hmoe import ConfigError
from hmoe.model.transformer import Transformer
from hmoe.serve.engine.engine import BusyError, ClosedError, Engine
from hmoe.specs.model import ModelSpec
from tests.serve.helpers import CONTEXT, TOKENIZER, TOP_P, Asked, ask, config, engine, greedy, model, prompt


def test_cancelled_work_ends_within_a_step(running: Engine) -> None:
    asked = Asked(running, [greedy(prompt(1, 4), max_tokens=90, stream=True)])
    assert asked.first.wait(10)
    waiting = [Asked(running, [greedy(prompt(1, 4), max_tokens=90)]) for _ in range(20)]
    steps = running.steps
    for asking in (*waiting, asked):
        asking.job.cancel()
    assert {asking.wait()[0].failure.code for asking in (*waiting, asked)} == {"cancelled"}  # type: ignore[union-attr]
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
    answers = [asking.wait()[0] for asking in asked]
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
    alone = [ask(started, task)[0].ids for task in good]
    bad = greedy((*prompt(1, 20), POISON, *prompt(2, 30)))
    late = greedy(prompt(8, 20), max_tokens=30)
    order = [bad, *good[:3], bad, late, *good[3:], bad]
    answers = [asked.wait()[0] for asked in [Asked(started, [task]) for task in order]]
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
    assert [ask(started, task)[0].ids for task in good] == alone
    assert started.alive


def test_closing_lets_work_end_or_ends_it() -> None:
    started = engine()
    asked = [Asked(started, [greedy(prompt(1, 4), max_tokens=20)]) for _ in range(12)]
    started.close()
    with pytest.raises(ClosedError):
        Asked(started, [greedy(prompt(1, 4))])
    assert all(asking.wait()[0].finish == "length" for asking in asked)
    started.join(10)
    assert not started.alive
    started = engine()
    asked = [Asked(started, [greedy(prompt(1, 4), max_tokens=90)]) for _ in range(12)]
    started.close(give_up=True)
    assert {asking.wait()[0].failure.status for asking in asked if asking.wait()[0].failure} == {503}  # type: ignore[union-attr]
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
from hmoe.serve.engine.types import SequenceTask
from tests.serve.helpers import engine, prompt

try:
    with engine() as started:
        started.submit([SequenceTask(prompt(1, 8), max_tokens=80)], lambda event: None, 60)
        raise SystemExit(5)
finally:
    assert not started._thread.is_alive()  # the abort itself is a race
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 5, result.stderr
