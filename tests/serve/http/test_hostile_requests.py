"""What strangers send: every answer is 4xx in JSON, and the next good request is answered bit for bit as ever."""

import gzip
import json
import random
import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hmoe.serve.http.schema import CompletionRequest
from tests.serve.helpers import CONTEXT, Live, model

KEY = "sesame-\u00e4"


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with Live(body_bytes=100_000) as started:
        yield started


@pytest.fixture(autouse=True)
def _good_requests_are_answered_alike(live: Live, good: tuple[str, str]) -> Iterator[None]:
    yield
    answer = live.greedy()
    assert (json.dumps(answer.json()["choices"]), answer.headers["content-type"]) == good
    health = live.get("/health").json()
    assert (health["status"], health["running"], health["open"]) == ("ok", 0, 0)
    assert threading.active_count() < 40


@pytest.fixture(scope="module")
def good(live: Live) -> tuple[str, str]:
    answer = live.greedy()
    assert answer.status_code == 200
    return json.dumps(answer.json()["choices"]), answer.headers["content-type"]


def check(status: int, body: bytes, allowed: tuple[int, ...]) -> None:
    assert status in allowed, body
    if status != 200:
        error = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]


PROMPTS = {
    "empty": "", "one": "a", "limit-1": "a" * (CONTEXT - 1), "limit": "a" * CONTEXT, "limit+1": "a" * (CONTEXT + 1),
    "ten times": "a" * 10 * CONTEXT, "megabyte": "a" * 1_000_000, "controls": "<|endoftext|></s><s><|im_start|>",
    "NUL": "a\x00b", "newlines": "\r\n" * 10, "scripts": "\u202e漢\U0001f600\u0300",
}  # fmt: skip


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts(live: Live, name: str) -> None:
    fits = len(PROMPTS[name].encode()) < CONTEXT
    allowed = (200,) if fits else (413,) if name == "megabyte" else (400,)
    for body in (
        {"prompt": PROMPTS[name], "max_tokens": 1},
        {"prompt": list(PROMPTS[name].encode()) or [256], "max_tokens": 1},
        {"prompt": [PROMPTS[name]] * 2, "max_tokens": 1, "stream": True},
    ):
        answer = live.post("/v1/completions", body)
        check(answer.status_code, answer.content, allowed)
    body = {"messages": [{"role": "user", "content": PROMPTS[name]}], "max_tokens": 1}
    answer = live.post("/v1/chat/completions", body)
    check(answer.status_code, answer.content, (200, 400, 413))


DEEP = b"[" * 100_000 + b"]" * 100_000
BODIES = {
    "no body": b"", "not UTF-8": b'{"prompt": "\xff\xfe"}', "truncated": b'{"prompt": "x', "no JSON": b"prompt=x",
    "NaN": b'{"prompt": "x", "temperature": NaN}', "infinity": b'{"prompt": "x", "temperature": Infinity}',
    "huge float": b'{"prompt": "x", "temperature": 1e999}', "twice": b'{"prompt": "x", "prompt": "y"}',
    "twice below": b'{"prompt": "x", "stream_options": {"a": 1, "a": 1}}', "UTF-16": '{"prompt": "x"}'.encode("utf-16"),
    "5,000 digits": b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", "half a pair": b'{"prompt": "\\ud800"}',
    "half a pair as a key": b'{"prompt": "x", "\\udfff": 1}', "list": b"[]", "null": b"null", "text": b'"x"',
    "trailing": b'{"prompt": "x"} x', "two": b'{"prompt": "x"}{"prompt": "y"}', "BOM": b'\xef\xbb\xbf{"prompt": "x"}',
    "many fields": json.dumps({f"f{i}": i for i in range(5000)}).encode(), "control": b'{"prompt": "a\nb"}',
    "types": b'{"prompt": {"a": [1]}, "max_tokens": [], "stop": 1}', "bool": b'{"prompt": [true, false]}',
    "mixed": json.dumps({"prompt": ["x", 1] * 9000}).encode(), "floats": b'{"prompt": [1.0, 2.0]}',
    "deep prompt": b'{"prompt": ' + b"[" * 500 + b"1" + b"]" * 500 + b"}", "single quotes": b"{'prompt': 'x'}",
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
def test_bodies(live: Live, name: str, route: str) -> None:
    answer = live.post(route, BODIES[name])
    check(answer.status_code, answer.content, (400,))


def test_bodies_nested_deep_or_too_large(live: Live) -> None:
    nested = live.post("/v1/completions", DEEP[50_000 : 50_000 + 99_000])
    check(nested.status_code, nested.content, (400,))
    for size in (100_001, 3_000_000):
        answer = live.post("/v1/completions", b"[" * size)
        check(answer.status_code, answer.content, (413,))

    def pieces() -> Iterator[bytes]:
        for _ in range(30):
            yield b" " * 10_000

    import httpx

    headers = {"Content-Type": "application/json"}
    answer = httpx.post(live.url + "/v1/completions", content=pieces(), headers=headers, timeout=60)
    check(answer.status_code, answer.content, (413,))


def test_compressed_bodies_and_other_types_are_refused(live: Live) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    check(
        (a := live.post("/v1/completions", bomb, **{"Content-Encoding": "gzip"})).status_code,
        a.content,
        (415,),
    )
    good = b'{"prompt": "x"}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        answer = live.post("/v1/completions", good, **{"Content-Type": kind})
        check(answer.status_code, answer.content, (415,))
    assert (
        live.post("/v1/completions", good, **{"Content-Type": "Application/JSON; charset=utf-8"}).status_code
        == 200
    )


JSONS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.dictionaries(
    st.sampled_from([*CompletionRequest.model_fields, "messages", "x"]), JSONS, max_size=5
)


@settings(
    max_examples=500,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(fields=FIELDS, prompt=st.none() | st.text(max_size=20) | st.lists(st.integers(0, 300), max_size=9))
def test_bodies_from_hypothesis(live: Live, fields: dict[str, object], prompt: object) -> None:
    body = {**({} if prompt is None else {"prompt": prompt}), "max_tokens": 2, **fields}
    answer = live.post("/v1/completions", json.dumps(body).encode())
    check(answer.status_code, answer.content, (200, 400, 404))


@pytest.mark.slow
@settings(max_examples=5000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=200) | JSONS.map(lambda value: json.dumps(value).encode()))
def test_many_bodies_from_hypothesis(live: Live, body: bytes) -> None:
    answer = live.post("/v1/completions", body)
    check(answer.status_code, answer.content, (400,))


def request(head: str, body: str = "") -> bytes:
    return (head.replace("\n", "\r\n") + "\r\n\r\n" + body).encode("latin-1")


POST = "POST /v1/completions HTTP/1.1\nHost: x\nContent-Type: application/json\n"
GOOD = '{"prompt": "x"}'
RAW = {
    "64 KB header": request("GET /health HTTP/1.1\nHost: x\nX: " + "a" * 70_000),
    "64 KB target": request("GET /" + "a" * 70_000 + " HTTP/1.1\nHost: x"),
    "1,000 headers": request(
        "GET /health HTTP/1.1\nHost: x\nConnection: close\n" + "\n".join(f"X{i}: 1" for i in range(1000))
    ),
    "no Host": request("GET /health HTTP/1.1\nConnection: close"),
    "two Hosts": request("GET /health HTTP/1.1\nHost: a\nHost: b"),
    "bad method": request("G@T /health HTTP/1.1\nHost: x"),
    "bad version": request("GET /health HTTP/9.9\nHost: x"),
    "no HTTP": b"hello\r\n\r\n",
    "TLS": bytes.fromhex("16030100a5010000a10303") + bytes(200),
    "negative length": request(POST + "Content-Length: -5", GOOD),
    "wrong length": request(POST + "Content-Length: 5x", GOOD),
    "huge length": request(POST + "Connection: close\nContent-Length: " + "9" * 19, GOOD),
    "endless length": request(POST + "Content-Length: " + "9" * 6000, GOOD),
    "two lengths": request(POST + "Content-Length: 15\nContent-Length: 16", GOOD),
    "length and chunked": request(
        POST + "Content-Length: 4\nTransfer-Encoding: chunked",
        "0\r\n\r\nGET /x HTTP/1.1\r\nHost: x\r\n\r\n",
    ),
    "other encoding": request(POST + "Transfer-Encoding: xchunked", "0\r\n\r\n"),
    "encoding twice": request(POST + "Transfer-Encoding: chunked\nTransfer-Encoding: identity", "0\r\n\r\n"),
    "chunked garbage": request(POST + "Transfer-Encoding: chunked", "zz\r\nhello\r\n"),
    "chunk too long": request(POST + "Transfer-Encoding: chunked", "f" * 40 + "\r\nhello\r\n"),
    "space before colon": request("GET /health HTTP/1.1\nHost : x"),
    "NUL in header": request("GET /health HTTP/1.1\nHost: x\nX: a\x00b"),
    "line folding first": request("GET /health HTTP/1.1\n Host: x"),
    "CONNECT": request("CONNECT x:80 HTTP/1.1\nHost: x\nConnection: close"),
    "unknown method": request("FOO /health HTTP/1.1\nHost: x\nConnection: close"),
    "upgrade": request("GET /v1/models/x HTTP/1.1\nHost: x\nConnection: Upgrade, close\nUpgrade: websocket"),
    "expectation": request(POST + "Connection: close\nExpect: 100-continue\nContent-Length: 200000"),
}  # fmt: skip


@pytest.mark.parametrize("name", RAW)
def test_headers(live: Live, name: str) -> None:
    answer = live.raw(RAW[name])
    assert answer.startswith(b"HTTP/1.1 4"), answer[:200]
    head, _, body = answer.partition(b"\r\n\r\n")
    check(int(head.split()[1]), body, tuple(range(400, 500)))
    assert b"application/json" in head


def test_pipelined_requests_are_answered_in_order_and_nothing_is_smuggled(live: Live) -> None:
    smuggled = "GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = live.raw(
        request("GET /health HTTP/1.1\nHost: x") * 3
        + request("GET /nothing HTTP/1.1\nHost: x\nConnection: close")
    )
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200"] * 3 + [b"404"]
    for framing in (
        "Content-Length: 4\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\nContent-Length: 200",
    ):
        answer = live.raw(request(POST + framing, "0\r\n\r\n" + smuggled))
        assert answer.count(b"HTTP/1.1 ") == 1
        assert answer.startswith(b"HTTP/1.1 400")


PATHS = ["/../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/%252e%252e/etc/passwd", "/..\\..\\etc\\passwd",
         "//etc/passwd", "/v1/models/..%2f..%2fetc%2fpasswd", "/v1/models/%00", "/metrics/../../etc/passwd",
         "/v1/", "/v1/models/", "/docs", "/openapi.json", "/static/x", "/health/", "/HEALTH",
         "/v1/completions/../models", "/%ff", "/a\u00e9"]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_paths(live: Live, path: str) -> None:
    answer = live.raw(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    check(int(head.split()[1]), body, (400, 404))
    assert b"root:" not in answer


def test_wrong_methods_are_405_with_what_is_allowed(live: Live) -> None:
    for method, path in (
        ("GET", "/v1/completions"),
        ("POST", "/health"),
        ("DELETE", "/v1/models"),
        ("PUT", "/metrics"),
    ):
        answer = live.raw(
            request(
                f"{method} {path} HTTP/1.1\nHost: x\nContent-Type: application/json\nContent-Length: 0\n"
                "Connection: close"
            )
        )
        head, _, body = answer.partition(b"\r\n\r\n")
        check(int(head.split()[1]), body, (405,))
        assert b"\nallow: " in head.lower()


def test_random_bytes(live: Live) -> None:
    rng = random.Random(1)
    for _ in range(200):
        with live.connect() as connection:
            connection.sendall(rng.randbytes(rng.randrange(1, 300)) + b"\r\n\r\n")
            answer = connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 4"), answer


def test_the_key_is_asked_for_on_every_route_but_health(live: Live) -> None:
    with Live(model(), api_key=KEY) as locked:
        bearer = "Bearer " + KEY
        assert locked.get("/health").status_code == 200
        for path in ("/v1/models", "/metrics", "/nothing", "/health/", "//health", "/%2fhealth", "/health%00",
                     "/v1/../health", "/health/../v1/models", "/v1/models?x=/health",
                     "/health;/../metrics"):  # fmt: skip
            for headers in ("", f"Authorization: {KEY}", "Authorization: Bearer", "Authorization: Bearer sesam",
                            f"Authorization: Basic {KEY}", f"X-Api-Key: {KEY}", "Host: localhost"):  # fmt: skip
                extra = (headers + "\r\n" if headers else "") + (
                    "" if headers.startswith("Host") else "Host: x\r\n"
                )
                answer = locked.raw(f"GET {path} HTTP/1.1\r\n{extra}Connection: close\r\n\r\n".encode())
                assert answer.startswith(b"HTTP/1.1 401"), (path, headers, answer[:100])
                assert b"\nwww-authenticate: bearer" in answer.lower()
        twice = request("GET /v1/models HTTP/1.1\nHost: x\nConnection: close\nAuthorization: Bearer no")[:-4]
        twice += f"\r\nAuthorization: {bearer}\r\n\r\n".encode()
        assert locked.raw(twice).startswith(b"HTTP/1.1 401")
        assert locked.post("/v1/completions", {"prompt": "x"}).status_code == 401
        authorized = (
            f"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {bearer}\r\n\r\n"
        ).encode()
        assert locked.raw(authorized).startswith(b"HTTP/1.1 200")
