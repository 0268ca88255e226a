"""Hostile, slow and stuck connections to a server; a good request on another is answered bit for bit as ever."""

import os
import random
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from hmoe.serve.http.routes import ROUTES
from tests.faults.campaign import Case, FaultTest, check
from tests.faults.server import ask_good, check_alike, check_error, cut, prepare_good, serve_watched
from tests.faults.server_inputs import mutate
from tests.serve.helpers import Live, receive_all, wait_until
from tests.serve.http.test_connections import HEAD, LONG, send
from tests.serve.http.test_hostile_requests import PATHS, POST, RAW, request

KEY = "sesame"
# Else a case would wait long for connections that never send the rest of what they began.
SHORT = {"header_seconds": 0.5, "body_seconds": 0.5, "idle_seconds": 1.0}
FRAMINGS = (
    "Content-Length: 4\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\nContent-Length: 200",
    "Content-Length: 5\nContent-Length: 4", "Content-Length: 5, 4", "Content-Length: +5", "Content-Length: 0x5",
    "Content-Length: 5 5", "Content-Length: -1", "Content-Length: 5e0", "Content-Length: \u00b25", "Content-Length:",
    "Transfer-Encoding: chunked, identity", "Transfer-Encoding: identity, chunked", "Transfer-Encoding: xchunked",
    "Transfer-Encoding: chunked\nTransfer-Encoding: chunked", "Transfer-Encoding : chunked",
    "Transfer-Encoding: chunked\x0b",
    "Transfer-Encoding:\x00chunked", "X: y\rTransfer-Encoding: chunked",
    "Transfer_Encoding: chunked\nContent-Length: x",
)  # fmt: skip
CHUNKS = (
    "0x1\r\nx\r\n0\r\n\r\n", "-1\r\nx\r\n0\r\n\r\n", "+1\r\nx\r\n0\r\n\r\n", "1\r\nxZZ0\r\n\r\n",
    "1_0\r\nx\r\n0\r\n\r\n", "\r\n\r\n", "g\r\n\r\n", "f" * 21 + "\r\nx\r\n", "1\r\nxx\r\n0\r\n\r\n",
    "1 1\r\nx\r\n0\r\n\r\n",
)  # fmt: skip
SMUGGLED = "GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
PIECES = (
    "..", ".", "%2e%2e", "%252e%252e", "..\\..", "%00", "%ff", "%5c", "~", "etc", "passwd", "proc", "self", "environ",
    "v1", "models", "health", "metrics", "docs", "static", "", " ", "%2f", ";", "?", "#", "*", "\u00e9", "a" * 300,
)  # fmt: skip
METHODS = (*"GET HEAD POST PUT PATCH DELETE OPTIONS TRACE CONNECT get PRI".split(" "), "X" * 40)  # noqa: SIM905
WRONG_KEYS = (
    "", f"Authorization: {KEY}", "Authorization: Bearer", "Authorization: Bearer sesam", f"X-Api-Key: {KEY}",
    f"Authorization: Basic {KEY}", f"Authorization: Bearer x{KEY}", f"Proxy-Authorization: Bearer {KEY}",
    f"Authorization: Bearer {KEY}\nAuthorization: Bearer no", f"Cookie: key={KEY}", "Host: localhost",
    "X-Forwarded-For: 127.0.0.1",
)  # fmt: skip
OPEN_PATHS = {route.path for route in ROUTES if not route.needs_key}
Verdict = Callable[[list[int]], bool]


def split_answers(raw: bytes) -> list[tuple[int, bytes]]:
    """Return status and body of each answer on a connection, without those that only say "go on"."""
    answers = []
    while raw:
        head, _, rest = raw.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        length = int(fields.get(b"content-length", 0))
        check(head.startswith(b"HTTP/1.1 "), f"no answer: {raw[:100]!r}")
        answers.append((int(head.split()[1]), rest[:length]))
        raw = rest[length:]
    return [(status, body) for status, body in answers if status >= 200]


def draw_path(draw: random.Random) -> str:
    """Draw a path that a careless server might follow out of its own."""
    return (
        draw.choice(PATHS)
        if draw.random() < 0.3
        else "/" + "/".join(draw.choices(PIECES, k=draw.randrange(1, 7)))
    )


def draw_connection(draw: random.Random) -> tuple[bytes, Verdict]:
    """Draw what is sent on one connection, and what its statuses must be."""
    way = draw.choice((0, 1, 2, 3, 4, 4, 4, 5, 5, 6))
    if way == 0:
        return draw.choice(list(RAW.values())), lambda statuses: 200 not in statuses and len(statuses) == 1
    if way == 1:
        return mutate(draw, draw.choice(list(RAW.values()))), bool
    if way == 2:
        return draw.randbytes(draw.randrange(1, 400)) + b"\r\n\r\n", lambda statuses: len(statuses) == 1
    if way == 3:
        count = draw.randrange(1, 20)
        good = request("GET /health HTTP/1.1\nHost: x") * count
        return good + draw.randbytes(20) + b"\0\r\n\r\n", lambda statuses: statuses == [200] * count + [400]
    if way == 4:
        framing = draw.choice(FRAMINGS)
        return request(
            POST + framing, "0\r\n\r\n" + SMUGGLED
        ), lambda statuses: statuses in ([400], [413], [501])
    if way == 5:
        chunked = request(POST + "Transfer-Encoding: chunked", draw.choice(CHUNKS) + SMUGGLED)
        return chunked, lambda statuses: statuses == [400]
    path, method = draw_path(draw), draw.choice(METHODS)
    sent = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    real = path.partition("?")[0].partition("#")[0] in {
        route.path for route in ROUTES if route.method == "GET"
    }
    return sent, lambda statuses: bool(statuses) and (200 not in statuses or real)


def draw_locked(draw: random.Random) -> tuple[bytes, Verdict]:
    """Draw a request without the key; only routes that are open may answer it."""
    path = draw.choice([route.path for route in ROUTES]) if draw.random() < 0.5 else draw_path(draw)
    form = draw.choice(("{}", "{}", "/health/..{}", "{}?x=/health", "{};/health", "/{}", "{}#/health"))
    path = form.format(path)
    fields = draw.choice(WRONG_KEYS).replace("\n", "\r\n")
    host = "" if fields.startswith("Host") else "Host: x\r\n"
    method = draw.choice(METHODS[:9])
    sent = f"{method} {path} HTTP/1.1\r\n{host}{fields}{chr(13) + chr(10) if fields else ''}Connection: close\r\n\r\n"
    is_open = path.partition("?")[0] in OPEN_PATHS
    refused = {400, 401}  # 400: what cannot be read at all
    return sent.encode(), lambda statuses: is_open or (len(statuses) == 1 and statuses[0] in refused)


def send_connections(case: Case) -> int:
    """Open twenty-five connections at a time to a server, a third of them to one with a key."""
    draw = case.draw()
    with serve_watched(case, **SHORT) as live, serve_watched(case, api_key=KEY, **SHORT) as locked:
        opened = []
        for place in range(25):
            sent, verdict = draw_locked(draw) if place % 3 == 0 else draw_connection(draw)
            connection = (locked if place % 3 == 0 else live).connect()
            with suppress(OSError):
                connection.sendall(sent)
            opened.append((connection, sent, verdict))
        for connection, sent, verdict in opened:
            with connection:
                raw = receive_all(connection)
            check_raw(raw, sent, verdict)
    return 25


def check_raw(raw: bytes, sent: bytes, verdict: Verdict) -> None:
    """Check all that came back on one connection."""
    check(b"root:" not in raw and b"HMOE" not in raw, f"a file of the machine for {cut(sent)}")
    answers = split_answers(raw)
    statuses = [status for status, _ in answers]
    check(verdict(statuses), f"answered {statuses} for {cut(sent)}")
    for status, body in answers:
        if status != 200 and not sent.startswith(b"HEAD"):
            check_error(status, body, sent)
        check(status < 500, f"answered {status} for {cut(sent)}")


# Slow clients

BEGINNINGS = {"header": b"GET /health HTTP/1.1\r\nHost: x\r\nX: ", "body": HEAD % 5000, "nothing": b""}
KINDS = (*BEGINNINGS, "reader", "reader that reads")


def trouble_slowly(case: Case) -> int:
    """Hold connections open by sending or reading next to nothing; others are served, and all is let go of."""
    draw = case.draw()
    kind, count = KINDS[case.number % len(KINDS)], draw.randrange(10, 60)
    reads = kind.startswith("reader")
    limits = {
        "header_seconds": 0.5,
        "body_seconds": 0.7,
        "idle_seconds": 2.0,
        "write_seconds": 0.6,
        "max_queue": 99,
    }
    with serve_watched(case, context_length=96 if not reads else 512, max_tokens=500, **limits) as live:
        ask_good(live)
        base = count_files()
        if reads:
            # Small buffers on both sides are full at once; connections inherit the listening socket's.
            live.server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            count = draw.randrange(1, 3)
        opened = [live.connect() for _ in range(count)]
        for connection in opened:
            begin_slowly(connection, kind, draw)
        told = hold_slowly(case, live, opened, kind, draw.uniform(0.01, 0.1))
        for connection in opened:
            connection.close()
        if not reads:
            check_told(told, kind)
        wait_until(lambda: count_files() == base)
    return count


def count_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def begin_slowly(connection: socket.socket, kind: str, draw: random.Random) -> None:
    """Send the beginning of a request, or a whole one whose answer is larger than what is read of it."""
    if kind in BEGINNINGS:
        start = BEGINNINGS[kind]
        connection.sendall(start[: draw.randrange(1, len(start) + 1)] if kind == "header" else start)
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    send(
        connection,
        {**LONG, "max_tokens": draw.randrange(300, 480), "n": draw.randrange(4, 8), "logprobs": 20},
    )


def hold_slowly(case: Case, live: Live, opened: list[socket.socket], kind: str, pause: float) -> list[bytes]:
    """Send or read a byte of each now and then until the server has let go of all; return what they were told."""
    stop, told = threading.Event(), [b""] * len(opened)

    def trickle() -> None:
        while not stop.wait(pause):
            for connection in opened:
                with suppress(OSError):
                    if kind == "reader that reads":
                        connection.recv(1, socket.MSG_DONTWAIT)
                    elif kind in {"header", "body"}:
                        connection.send(b"a")

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        if kind.startswith("reader"):
            wait_until(lambda: live.service.engine.load()["open"] > 0)
        # With others in a batch last digits may differ, so of those the text is compared.
        meanwhile = ask_good(live)
        check_alike(meanwhile, case, only_text=kind.startswith("reader"))
        # The good client's own connection stays open.
        wait_until(lambda: len(live.server.server_state.connections) <= 1, 60)
        check_alike(ask_good(live), case)
        if kind in BEGINNINGS:
            told = [receive_all(connection) for connection in opened]
    finally:
        stop.set()
        thread.join()
    return told


def check_told(told: list[bytes], kind: str) -> None:
    """Check that who sends slowly is told so."""
    for raw in told:
        answers = split_answers(raw)
        check([status for status, _ in answers] == [408], f"a slow {kind} is told {raw[:200]!r}")
        check_error(408, answers[0][1], kind)


TESTS: tuple[FaultTest, ...] = (
    FaultTest("R14b", "hostile connections: framing, smuggling, paths, keys", "answered 4xx in JSON; nothing is let in",
              "connections", send_connections, 20, prepare_good),
    FaultTest("R14d", "slow headers, bodies and readers", "let go of in time; others are served meanwhile",
              "connections", trouble_slowly, 25, prepare_good),
)  # fmt: skip
