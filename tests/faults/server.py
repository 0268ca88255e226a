"""What strangers ask a server: bodies and prompts; the good request is answered bit for bit as ever."""

import json
import random
import string
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import httpx

from hmoe.serve.http.routes import ROUTES
from tests.faults.campaign import Case, FaultTest, check
from tests.faults.server_inputs import draw_body
from tests.serve.helpers import CONTEXT, TOKENIZER, Live, wait_until

GOOD = {"prompt": "It was a dark", "max_tokens": 12, "temperature": 0, "logprobs": 2, "seed": 0}
ERROR_FIELDS = {"message", "type", "param", "code"}


def prepare_good(base: Path) -> None:
    """Write down how the good request is answered by a server that nobody has troubled."""
    with Live() as live:
        (base / "good.json").write_text(ask_good(live))


def ask_good(live: Live, **headers: str) -> str:
    """Ask the good request; return all of its answer that may not change."""
    answer = live.post("/v1/completions", GOOD, **headers)
    check(
        answer.status_code == 200, f"the good request is answered {answer.status_code}: {answer.text[:200]}"
    )
    content = answer.json()
    return json.dumps([content["choices"], content["usage"], content["hmoe"]])


@contextmanager
def serve_watched(case: Case, **changes: Any) -> Iterator[Live]:
    """Serve a small model; at the end it is well, holds nothing open and answers the good request as ever."""
    with Live(**changes) as live:
        yield live
        wait_until(lambda: live.service.engine.load() == {"open": 0, "waiting": 0, "running": 0})
        headers = {"Authorization": f"Bearer {changes['api_key']}"} if "api_key" in changes else {}
        check_alike(ask_good(live, **headers), case)
        health = live.get("/health")
        state = (health.status_code, health.json()["status"], health.json()["failures"])
        check(state == (200, "ok", 0), f"/health after all that: {health.text}")


def check_alike(answer: str, case: Case, only_text: bool = False) -> None:
    """Compare an answer to the good request with that of an untroubled server."""
    expected = (case.base / "good.json").read_text()
    if only_text:
        answer, expected = (json.dumps(json.loads(words)[0][0]["text"]) for words in (answer, expected))
    place = next((i for i, pair in enumerate(zip(answer, expected, strict=False)) if pair[0] != pair[1]), 0)
    shown = f"{answer[place : place + 80]!r}, was {expected[place : place + 80]!r}"
    check(answer == expected, f"the good request is answered otherwise: {shown}")


def check_answer(answer: httpx.Response, sent: object) -> None:
    """Check that an answer is a whole one, or an error of the client's as JSON."""
    if answer.status_code == 200:
        check_whole(answer, sent)
    else:
        check_error(answer.status_code, answer.content, sent)


def check_error(status: int, content: bytes, sent: object) -> None:
    """Check that an answer is 4xx with an error object."""
    words = f"{status} {content[:200]!r} for {cut(sent)}"
    check(400 <= status < 500, words)
    try:
        error = read_strict(content)["error"]
    except (ValueError, KeyError, TypeError):
        check(False, f"no error object: {words}")
    check(set(error) == ERROR_FIELDS and error["message"] and isinstance(error["message"], str), words)


def check_whole(answer: httpx.Response, sent: object) -> None:
    """Check that a 200 is JSON whose choices have ended, or a stream to its very end."""
    words = f"200 {answer.text[-200:]!r} for {cut(sent)}"
    if answer.headers["content-type"].startswith("text/event-stream"):
        events = [event.removeprefix("data: ") for event in answer.text.strip().split("\n\n")]
        check(events[-1] == "[DONE]", f"a stream without an end: {words}")
        check(
            not any("error" in read_strict(event) for event in events[:-1]), f"an error in a stream: {words}"
        )
        return
    choices = read_strict(answer.content)["choices"]
    check(choices and all(choice["finish_reason"] in {"stop", "length"} for choice in choices), words)


def read_strict(content: str | bytes) -> Any:
    """Decode JSON as the standard has it, without NaN and infinity."""

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON")

    return json.loads(content, parse_constant=refuse)


def cut(sent: object) -> str:
    """Return what was sent, short enough to be read."""
    words = repr(sent)
    return words if len(words) <= 200 else f"{words[:180]}... ({len(words):,} characters)"


# Bodies

POST_ROUTES = [route.path for route in ROUTES if route.method == "POST"]


def send_bodies(case: Case) -> int:
    """Send fifty bodies, to any route that takes them."""
    draw = case.draw()
    with serve_watched(case, max_tokens=12, body_bytes=100_000) as live:
        for _ in range(50):
            route = draw.choice(POST_ROUTES)
            body = draw_body(draw, route)
            check_answer(live.post(route, body), (route, body))
    return 50


# Prompts

SCRIPTS = (
    "a", "\0", "\n", "\u00e4", "\u6f22", "\u202e", "\U0001f600", "\u0300", "<|endoftext|>", "</s>", "<|im_start|>",
    "[INST]", "<s>", "{{ 7*7 }}", "\ufffd", "\ufeff",
)  # fmt: skip


def draw_prompts(draw: random.Random, most: int) -> list[str]:
    """Draw prompts by their tokens, which are bytes here, of which `most` have room, and by their characters."""
    lengths = [0, 1, most - 1, most, most + 1, 10 * most, draw.randrange(2, most), 1 << 20]
    prompts = []
    for length in lengths:
        text = "".join(draw.choices(SCRIPTS, k=length))
        whole = text.encode()[:length].decode(errors="ignore")
        prompts.append(whole + "a" * (length - len(whole.encode())))
    return [*prompts, *SCRIPTS, "\ud800", "a\udfff", "".join(draw.choices(string.printable, k=40))]


def send_prompts(case: Case) -> int:
    """Send prompts as text, as tokens and as chats; each is answered if it fits, and else refused."""
    draw, tried = case.draw(), 0
    new = draw.randrange(1, 5)
    with serve_watched(case, body_bytes=100_000) as live:
        for prompt in draw_prompts(draw, CONTEXT - new):
            stream = draw.random() < 0.3
            for path, fields, tokens in write_requests(live, prompt):
                # Greedy without an end, so that the number of new tokens is known too.
                body = {
                    **fields,
                    "max_tokens": new,
                    "temperature": 0,
                    "logit_bias": {"256": -100},
                    "stream": stream,
                }
                answer = live.post(path, body)
                check_prompt(answer, tokens, new, (path, body))
                tried += 1
    return tried


def write_requests(live: Live, prompt: str) -> list[tuple[str, dict[str, Any], int | None]]:
    """Return path, fields and number of tokens of the requests with a prompt; None: it is no text."""
    try:
        tokens = TOKENIZER.encode([prompt])[0]
    except UnicodeEncodeError:
        tokens = None
    chat = [{"role": "user", "content": prompt}]
    whole = live.service.conversation.encode
    requests: list[tuple[str, dict[str, Any], int | None]] = [
        ("/v1/completions", {"prompt": prompt}, None if tokens is None else len(tokens) or 1),
        (
            "/v1/chat/completions",
            {"messages": chat},
            None if tokens is None else len(whole(make_turns(prompt))),
        ),
    ]
    if tokens:
        requests.append(("/v1/completions", {"prompt": tokens}, len(tokens)))
    return requests


def make_turns(prompt: str) -> Sequence[Any]:
    from hmoe.serve.chat_prompt import ChatTurn

    return [ChatTurn("user", prompt, None)]


def check_prompt(answer: httpx.Response, tokens: int | None, new: int, sent: object) -> None:
    """Check that a prompt is answered if it fits in the context together with what is new."""
    fits = tokens is not None and tokens + new <= CONTEXT
    allowed = {200} if fits else {400, 413} if (tokens or 0) > 5 * CONTEXT else {400}
    check(
        answer.status_code in allowed,
        f"{answer.status_code}, not {allowed}: {answer.text[:200]} for {cut(sent)}",
    )
    check_answer(answer, sent)
    if fits and "json" in answer.headers["content-type"]:
        usage = answer.json()["usage"]
        check(usage["prompt_tokens"] == tokens, f"{usage}, not {tokens} tokens, for {cut(sent)}")


TESTS: tuple[FaultTest, ...] = (
    FaultTest("R14a", "hostile bodies of requests", "answered 200 or 4xx; the next good request bit for bit as ever",
              "bodies", send_bodies, 100, prepare_good),
    FaultTest("R14c", "prompts of every length and script", "answered if they fit in the context, and else 4xx",
              "prompts", send_prompts, 10, prepare_good),
)  # fmt: skip
