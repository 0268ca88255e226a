"""Bodies of requests that are drawn: near to good ones, with strange values, or not JSON at all."""

import json
import random
from typing import Any

from hmoe.serve.http.neutral_fields import CHAT, COMPLETION, SAMPLING
from hmoe.serve.http.schema import ChatRequest, CompletionRequest
from tests.serve.http.test_hostile_requests import BODIES

EDGES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 127, 128, 129, 256, 257, 299, 300, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**30,
    0.0, -0.0, 0.5, 1.0, 1.0000001, 5e-324, 1e308, "", "a", "\0", "\ud800", "\u202e\U0001f600", "a" * 1025, [], [[]],
    [""], ["a"], [0], [[0]], [300], [1, "a"], {}, {"": 0}, {"256": -100}, {"300": 1}, {"0": 101}, {"a": {"b": [1]}},
)  # fmt: skip
COMMON: dict[str, tuple[Any, ...]] = {
    "temperature": (0, 0.7, 2), "top_p": (0.1, 1), "top_k": (1, 5), "n": (1, 3), "seed": (7, -1), "stream": (True,),
    "stop": ("e", ["\x1f", "="]), "logit_bias": ({"61": 3},), "logprobs": (0, 5, True), "echo": (True,),
    "max_tokens": (0, 8), "prompt": ("", ["a", "b"], [1, 2], [[1], [299]]),
    "stream_options": ({"include_usage": True},),
    "messages": ([{"role": "system", "content": "x"}, {"role": "user", "content": [{"type": "text", "text": "y"}]}],),
}  # fmt: skip
SPLICES = (
    b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"-0", b"01", b'"\\ud800"', b'"\\u0000"', b'"\xff\xfe"',
    b'"\xed\xa0\x80"', b"[" * 3000, b"[" * 900 + b"1" + b"]" * 900, b'{"a":' * 2000, b"/**/1", b"1,", b"", b"'x'",
    b"\0", b"tru",
)  # fmt: skip


def draw_json(draw: random.Random, depth: int = 3) -> Any:
    """Draw any JSON value."""
    kind = draw.randrange(8 if depth else 5)
    if kind == 0:
        return draw.choice(EDGES)
    if kind == 1:
        return draw.randrange(-(10 ** draw.randrange(1, 25)), 10 ** draw.randrange(1, 25))
    if kind == 2:
        return draw.uniform(-1, 1) * 10.0 ** draw.randrange(-300, 300)
    if kind <= 4:
        return draw_text(draw, 20)
    if kind <= 6:
        return [draw_json(draw, depth - 1) for _ in range(draw.randrange(5))]
    return {draw_text(draw, 8): draw_json(draw, depth - 1) for _ in range(draw.randrange(5))}


def draw_text(draw: random.Random, longest: int) -> str:
    """Draw characters of all planes, now and then half of a pair."""
    highest = draw.choice((127, 255, 0xFFFF, 0x10FFFF))
    return "".join(chr(draw.randrange(highest + 1)) for _ in range(draw.randrange(longest)))


def draw_fields(draw: random.Random, route: str) -> dict[str, Any]:
    """Draw a request of which some fields are strange."""
    chat = "chat" in route
    kind, neutral = (ChatRequest, SAMPLING | CHAT) if chat else (CompletionRequest, SAMPLING | COMPLETION)
    names = [*kind.model_fields, *draw.sample(list(neutral), 5), draw_text(draw, 5)]
    fields: dict[str, Any] = (
        {"messages": [{"role": "user", "content": "Hi"}]} if chat else {"prompt": "It was"}
    )
    fields["max_tokens"] = draw.randrange(9)
    mild = draw.random() < 0.6  # else next to nothing would be answered
    for name in draw.sample([*COMMON, *neutral] if mild else names, draw.randrange(1, 5)):
        usual = [*COMMON.get(name, ()), *neutral.get(name, ())]
        way = draw.random() * (0.65 if mild else 1)
        if usual and way < 0.6:
            fields[name] = draw.choice(usual)
        else:
            fields[name] = draw.choice(EDGES) if way < 0.8 else draw_json(draw)
    if draw.random() < 0.1:
        del fields[draw.choice(list(fields))]
    return fields


def draw_body(draw: random.Random, route: str) -> bytes:
    """Draw the bytes of a body, most of them near to a good one."""
    way = draw.random()
    if way < 0.08:
        return draw.choice(list(BODIES.values()))
    if way < 0.13:
        return draw.randbytes(draw.randrange(300))
    body = json.dumps(draw_fields(draw, route), ensure_ascii=draw.random() < 0.7).encode(
        errors="surrogatepass"
    )
    if way < 0.55:
        return body
    if way < 0.7:
        name = draw.choice((b'"temperature"', b'"prompt"', b'"messages"', b'"x"', b'"seed"'))
        return b'{"prompt": "x", ' + name + b": " + draw.choice(SPLICES) + b"}"
    return mutate(draw, body)


def mutate(draw: random.Random, data: bytes) -> bytes:
    """Change a few bytes: flipped, put in, left out, repeated, or cut off."""
    changed = bytearray(data)
    for _ in range(draw.randrange(1, 4)):
        place = draw.randrange(len(changed) + 1)
        end = place + draw.randrange(1, 9)
        way = draw.randrange(5)
        if way == 0 and place < len(changed):
            changed[place] ^= 1 << draw.randrange(8)
        elif way == 1:
            changed[place:place] = draw.randbytes(draw.randrange(1, 4))
        elif way == 2:
            del changed[place:end]
        elif way == 3:
            changed[place:place] = changed[place:end] * draw.randrange(1, 4)
        elif draw.random() < 0.3:
            del changed[place:]
    return bytes(changed)
