"""A server under load, with a model that fails, and killed as a process: what was answered whole is right."""

import itertools
import json
import os
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch

from hmoe.errors import NonFiniteError
from hmoe.model.moe import MoE
from hmoe.model.transformer import Transformer
from hmoe.serve.engine.batch import BatchRunner
from tests.faults.campaign import Case, FaultTest, check
from tests.faults.server import (
    ask_good,
    check_alike,
    check_error,
    cut,
    prepare_good,
    read_strict,
    serve_watched,
)
from tests.serve.helpers import Live, model, prompt, wait_until

RARE = 7  # a token that good requests neither hold nor draw
OUTSIDE = 290  # a token that no text has
MARGIN = 1e-3
PATH = "/v1/completions"


@dataclass(frozen=True)
class Ask:
    """A request, how it is asked for, and what its text is if nothing else is asked at the time."""

    body: dict[str, Any]
    text: str
    way: str = "whole"

    def varied(self, draw: random.Random, ways: tuple[str, ...], most: tuple[int, ...] = (1, 2)) -> "Ask":
        """Return the request asked in another way, for several answers that are all the same."""
        way = draw.choice(ways)
        return Ask({**self.body, "n": draw.choice(most), "stream": way != "whole"}, self.text, way)


def choose_asks(ask: Callable[[dict[str, Any]], dict[str, Any]], count: int, new: int) -> list[Ask]:
    """Return greedy requests whose tokens all win by a margin: others in a batch may change last digits."""
    asks: list[Ask] = []
    for seed in itertools.count():
        tokens = [token if token != RARE else RARE + 1 for token in prompt(seed, 3 + seed % 8)]
        body = {"prompt": tokens, "max_tokens": new, "temperature": 0, "logprobs": 20,
                "logit_bias": {"256": -100, str(RARE): -100}}  # fmt: skip
        choice = ask(body)["choices"][0]
        tables = zip(choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"], strict=True)
        # Higher ones are of tokens that are never drawn.
        nearest = min(own - max((p for p in table.values() if p < own), default=own) for own, table in tables)
        if nearest > MARGIN and len(choice["logprobs"]["tokens"]) == new:
            asks.append(Ask(body, choice["text"]))
        if len(asks) == count:
            return asks
    raise AssertionError


def prepare_asks(base: Path) -> None:
    """Write down requests with their answers by a server that is asked nothing else."""
    prepare_good(base)
    with Live() as live:
        write_asks(base, choose_asks(lambda body: live.post(PATH, body).json(), 12, 24))


def write_asks(base: Path, asks: list[Ask]) -> None:
    (base / "asks.json").write_text(json.dumps([(ask.body, ask.text) for ask in asks]))


def read_asks(base: Path) -> list[Ask]:
    return [Ask(body, text) for body, text in json.loads((base / "asks.json").read_text())]


def post(url: str, body: dict[str, Any], got: bytearray | None = None) -> httpx.Response:
    """Ask, and keep what came even if the rest does not come."""
    # Without certificates, which take longer to read than the answer.
    with httpx.stream("POST", url + PATH, json=body, timeout=60, verify=False) as answer:
        content = bytearray() if got is None else got
        for piece in answer.iter_raw():
            content += piece
        return httpx.Response(answer.status_code, headers=answer.headers, content=bytes(content))


def perform(url: str, ask: Ask) -> str:
    """Ask, and return what came of it: right, busy, closing, failed, cut or left; raise if it is wrong."""
    got = bytearray()
    try:
        if ask.way == "leave":
            with httpx.stream("POST", url + PATH, json=ask.body, timeout=60, verify=False) as answer:
                next(answer.iter_bytes(), b"")
                return (
                    "left" if answer.status_code == 200 else name_refusal(answer.status_code, answer.headers)
                )
        answer = post(url, ask.body, got)
    except httpx.TransportError as error:
        check(b"[DONE]" not in got, f"an answer that was cut off looks whole: {cut(bytes(got[-100:]))}")
        return f"cut: {error!r}"
    if answer.status_code == 500:
        check(read_strict(answer.content)["error"]["type"] == "server_error", answer.text[:200])
        return "failed"
    if answer.status_code != 200:
        if answer.status_code != 503:
            check_error(answer.status_code, answer.content, ask)
        return name_refusal(answer.status_code, answer.headers)
    return (
        check_stream(answer.text, ask)
        if ask.way == "stream"
        else check_choices(answer.json()["choices"], ask)
    )


def name_refusal(status: int, headers: httpx.Headers) -> str:
    """Check that who is refused is told when to come again."""
    check(status in {429, 503}, f"told {status} under load")
    check(status == 503 or int(headers["retry-after"]) > 0, f"{status} without Retry-After")
    return "busy" if status == 429 else "closing"


def check_choices(choices: list[dict[str, Any]], ask: Ask) -> str:
    """Check that every choice is the text of an answer that is computed alone."""
    check(len(choices) == ask.body.get("n", 1), f"{len(choices)} choices for {cut(ask)}")
    for choice in choices:
        told = choice["text"], choice["finish_reason"]
        check(told == (ask.text, "length"), f"{told}, not {ask.text!r}, for {cut(ask)}")
    return "right"


def check_stream(text: str, ask: Ask) -> str:
    """Check a stream like a whole answer if it says that it has ended, and else that it does not look so."""
    events = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
    if events[-1] != "[DONE]":
        last = read_strict(events[-1])
        check("error" in last, f"a stream ends with {cut(last)}")
        return "closing" if last["error"]["code"] == "shutting_down" else "failed"
    texts = [""] * ask.body["n"]
    ends: list[Any] = [None] * ask.body["n"]
    for event in events[:-1]:
        for choice in read_strict(event)["choices"]:
            texts[choice["index"]] += choice["text"]
            ends[choice["index"]] = choice["finish_reason"] or ends[choice["index"]]
    return check_choices([{"text": t, "finish_reason": e} for t, e in zip(texts, ends, strict=True)], ask)


# Load


def load_server(case: Case) -> int:
    """Let twenty clients ask a server with eight places, some of which leave before the end."""
    draw, asks = case.draw(), read_asks(case.base)
    ways = ("whole", "stream", "leave")
    turns = [[draw.choice(asks).varied(draw, ways) for _ in range(5)] for _ in range(20)]
    outcomes: list[str] = []
    with serve_watched(case, max_batch=4, max_queue=4) as live, ThreadPoolExecutor(len(turns)) as pool:
        ask_good(live)
        before, gate = read_resident_bytes(), hold_passes()

        def take_turn(turn: list[Ask]) -> None:
            for ask in turn:
                outcomes.append(perform(live.url, ask))

        clients = [pool.submit(take_turn, turn) for turn in turns]
        # Nothing is computed until somebody was turned away, so that it is not by luck that some are.
        wait_until(lambda: "busy" in outcomes or any(client.done() for client in clients))
        gate.set()
        for client in clients:
            client.result(90)
        check({"busy", "right"} <= set(outcomes) <= {"busy", "right", "left"}, f"came of it: {set(outcomes)}")
        grown = read_resident_bytes() - before
        check(grown < 50 << 20, f"{grown >> 20} MiB more memory after {len(outcomes)} requests")
    return len(outcomes)


def hold_passes() -> threading.Event:
    """Make passes of the model wait, in this process, until the event is set."""
    gate, run = threading.Event(), BatchRunner.run

    def held(*arguments: Any) -> None:
        check(gate.wait(60), "the gate was not opened")
        run(*arguments)

    setattr(BatchRunner, "run", held)  # noqa: B010 - mypy refuses the assignment
    return gate


def read_resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# A model that fails

NOT_FINITE = (torch.nan, torch.inf, -torch.inf)
ERRORS: tuple[type[Exception], ...] = (
    RuntimeError, ValueError, ZeroDivisionError, MemoryError, IndexError, KeyError, OSError, torch.OutOfMemoryError,
    NonFiniteError, StopIteration, RecursionError, AssertionError, NotImplementedError,
)  # fmt: skip


def plant_failure(built: Transformer, layer: int, failure: float | type[Exception]) -> None:
    """Let experts of a layer fail on two tokens, and on no others."""
    seen: list[torch.Tensor] = []
    hidden, moe = built.hidden, built.blocks[layer].ffn
    assert isinstance(moe, MoE)
    run = moe.run_experts

    def remember(tokens_BL: torch.Tensor, *rest: Any) -> Any:
        seen[:] = [tokens_BL.reshape(-1)]
        return hidden(tokens_BL, *rest)

    def fail(*arguments: Any) -> torch.Tensor:
        y_TD = run(*arguments)
        bad_T = (seen[0] == RARE) | (seen[0] == OUTSIDE)
        if not bad_T.any():
            return y_TD
        if isinstance(failure, float):
            return y_TD.masked_fill(bad_T[:, None], failure)
        raise failure("planted")

    for module, name, function in ((built, "hidden", remember), (moe, "run_experts", fail)):
        setattr(module, name, function)


def draw_bad(draw: random.Random, ask: Ask) -> Ask:
    """Make a request bad: by a token of its prompt, or by one that it draws when its answer has begun."""
    tokens = list(ask.body["prompt"])
    bias = {"256": -100}
    if draw.random() < 0.5:
        tokens.insert(draw.randrange(len(tokens) + 1), OUTSIDE)
    else:
        bias[str(RARE)] = 100
    way = draw.choice(("whole", "stream"))
    return Ask({**ask.body, "prompt": tokens, "logit_bias": bias, "n": 1, "stream": way == "stream"}, "", way)


def fail_in_model(case: Case) -> int:
    """Ask good and bad requests at once of a model whose experts fail on the bad ones."""
    draw, asks, built = case.draw(), read_asks(case.base), model()
    failures: tuple[float | type[Exception], ...] = NOT_FINITE if case.number % 2 else ERRORS
    plant_failure(built, draw.randrange(2), draw.choice(failures))
    bad = [draw_bad(draw, draw.choice(asks)) for _ in range(draw.randrange(1, 4))]
    good = [draw.choice(asks).varied(draw, ("whole", "stream"), (1,)) for _ in range(7)]
    everything = [*bad, *good]
    draw.shuffle(everything)
    with Live(built, max_batch=draw.choice((1, 3, 8))) as live, ThreadPoolExecutor(len(everything)) as pool:
        outcomes = list(pool.map(lambda ask: perform(live.url, ask), everything))
        for ask, outcome in zip(everything, outcomes, strict=True):
            check(outcome == ("right" if ask in good else "failed"), f"{outcome} came of {cut(ask)}")
        check_alike(ask_good(live), case)
        health = live.get("/health")
        state = (health.status_code, health.json()["status"], health.json()["failures"])
        check(state == (200, "degraded", len(bad)), f"/health after {len(bad)} failures: {health.text}")
        live.service.engine.failed_at -= 61
        check(live.get("/health").json()["status"] == "ok", "degraded for longer than a minute")
    return len(bad)


TESTS: tuple[FaultTest, ...] = (
    FaultTest("R14e", "twenty clients at eight places, some of which leave",
              "answers as alone; others told when to come again", "requests", load_server, 20, prepare_asks),
    FaultTest("R14f", "experts that raise or give NaN on a request", "500 for that request only; /health says degraded",
              "bad requests", fail_in_model, 100, prepare_asks),
)  # fmt: skip
