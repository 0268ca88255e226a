"""Clients that are slow, that go away, that are too many; a model that fails; an end in order."""

import contextlib
import json
import socket
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch

from hmoe.serve.engine.batch import BatchRunner
from tests.serve.helpers import CONTEXT, Live, model, receive_all, wait_until

LONG = {"prompt": "x", "max_tokens": CONTEXT - 1, "logit_bias": {"256": -100}, "stream": True}
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


def send(connection: socket.socket, body: object) -> None:
    data = json.dumps(body).encode()
    connection.sendall(HEAD % len(data) + data)


class Held:
    """Passes of the model wait until `gate` is set; `steps` counts those that were let through."""

    def __init__(self, live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate, self.steps, run = threading.Event(), 0, BatchRunner.run

        def held(passes: BatchRunner, *arguments: object) -> None:
            assert self.gate.wait(60)
            self.steps += 1
            run(passes, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(BatchRunner, "run", held)


@pytest.mark.parametrize("sent", [b"", b"GET /hea", b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: "])
def test_a_slow_header_is_told_408_and_closed(sent: bytes) -> None:
    with Live(header_seconds=0.5) as live, live.connect() as connection:
        connection.sendall(sent)
        stop = threading.Event()

        def trickle() -> None:
            while not stop.wait(0.1):
                try:
                    connection.sendall(b"a" if sent else b"")
                except OSError:
                    return

        thread = threading.Thread(target=trickle)
        thread.start()
        answer = receive_all(connection)
        stop.set()
        thread.join()
        assert answer.startswith(b"HTTP/1.1 408")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "header_timeout"


def test_a_slow_body_is_told_408_and_closed() -> None:
    with Live(body_seconds=0.5) as live:
        for path in (b"/v1/completions", b"/nothing"):
            with live.connect() as connection:
                connection.sendall((HEAD % 100).replace(b"/v1/completions", path) + b'{"prompt"')
                answer = receive_all(connection)
                assert answer.startswith(b"HTTP/1.1 408")
                assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "body_timeout"
        with live.connect() as connection:  # answered before its body came, which then does not
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
            assert receive_all(connection).startswith(b"HTTP/1.1 200")
        assert live.greedy().status_code == 200


def test_an_idle_connection_is_closed() -> None:
    with Live(idle_seconds=1.0, header_seconds=0.4) as live, live.connect() as connection:
        for _ in range(2):
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += connection.recv(4096)
            assert answer.startswith(b"HTTP/1.1 200")
            time.sleep(0.6)  # longer than a header may take: nothing of one has come
        assert receive_all(connection) == b""


def test_a_reader_that_does_not_read_is_cut_off() -> None:
    with Live(write_seconds=0.5, context_length=512, max_tokens=512) as live:
        # Small buffers of the system on both sides are full at once; connections inherit the listening socket's.
        live.server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with live.connect() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            body = {**LONG, "max_tokens": 500, "n": 8, "logprobs": 20}
            send(connection, body)
            wait_until(lambda: live.service.engine.load()["open"] == 1)
            wait_until(lambda: live.metric("hmoe_open_connections") == 1)  # only the one that asks
        wait_until(lambda: live.service.engine.load()["open"] == 0)
        assert live.greedy().status_code == 200


def test_more_connections_than_allowed_are_told_503() -> None:
    with Live(connections=4) as live:
        held = [live.connect() for _ in range(4)]
        wait_until(lambda: len(live.server.server_state.connections) == 4)
        answer = live.raw(b"")
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"Retry-After: 1" in answer
        for connection in held:
            connection.close()
        wait_until(lambda: not live.server.server_state.connections)
        assert live.greedy().status_code == 200


def test_a_full_queue_is_told_429_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with Live(max_batch=2, max_queue=3) as live:
        expected = live.greedy().json()["choices"]
        held = Held(live, monkeypatch)
        with ThreadPoolExecutor(5) as pool:
            waiting = [
                pool.submit(lambda: httpx.post(live.url + "/v1/completions", timeout=60, json=GREEDY))
                for _ in range(5)
            ]
            wait_until(lambda: live.service.engine.load()["open"] == 5)
            for stream in (False, True):
                answer = live.post("/v1/completions", {"prompt": "x", "stream": stream})
                assert answer.status_code == 429
                assert int(answer.headers["retry-after"]) > 0
                assert answer.json()["error"]["type"] == "rate_limit_error"
            assert live.get("/health").json()["status"] == "ok"
            held.gate.set()
            for future in waiting:
                assert future.result().json()["choices"][0]["text"] == expected[0]["text"]


GREEDY = {"prompt": "It was a dark", "max_tokens": 12, "temperature": 0, "logprobs": 2, "seed": 0}


def test_a_request_that_takes_too_long_is_told_504(monkeypatch: pytest.MonkeyPatch) -> None:
    with Live(seconds=0.3) as live:
        run = BatchRunner.run
        monkeypatch.setattr(BatchRunner, "run", lambda *arguments: (time.sleep(0.05), run(*arguments))[1])
        answer = live.post("/v1/completions", {**LONG, "stream": False})
        assert answer.status_code == 504
        assert answer.json()["error"]["type"] == "server_error"
        streamed = live.post("/v1/completions", LONG)
        assert streamed.status_code == 200
        last = json.loads(streamed.text.strip().split("\n\n")[-1].removeprefix("data: "))
        assert last["error"]["code"] == "timeout"


@pytest.mark.parametrize("stream", [True, False])
def test_a_disconnect_cancels_within_a_step(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with Live() as live:
        held = Held(live, monkeypatch)
        with live.connect() as connection:
            send(connection, {**LONG, "stream": stream})
            wait_until(lambda: live.service.engine.load()["running"] == 1)
        (job,) = {sequence.job for sequence in live.service.engine._active}
        wait_until(lambda: job.cancelled)
        held.gate.set()
        wait_until(lambda: live.service.engine.load()["open"] == 0)
        assert held.steps == 1
        assert 'status="499"' in live.get("/metrics").text or stream
        assert live.greedy().status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_model_that_fails_is_500_for_that_request_and_degraded_for_a_while(stream: bool) -> None:
    built = model()
    built.embed.weight.data[290] = torch.nan
    with Live(built) as live:
        expected = live.greedy().json()["choices"]
        answer = live.post("/v1/completions", {"prompt": [5, 290, 7], "stream": stream})
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "not_finite"
        health = live.get("/health")
        assert health.status_code == 200
        assert health.json()["status"] == "degraded"
        assert health.json()["failures"] == 1
        assert live.greedy().json()["choices"] == expected
        live.service.engine.failed_at -= 61
        assert live.get("/health").json()["status"] == "ok"


def test_a_fault_of_the_server_is_500_and_the_next_request_is_answered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Live() as live:
        with monkeypatch.context() as broken:
            broken.setattr(live.service, "health", lambda: 1 / 0)
            answer = live.get("/health")
            assert answer.status_code == 500
            assert answer.json()["error"]["code"] == "internal_error"
            assert "division" not in answer.text
        wait_until(lambda: "ZeroDivisionError" in caplog.text)
        with monkeypatch.context() as broken:
            broken.setattr(BatchRunner, "_draw", lambda *arguments: 1 / 0)
            assert live.greedy().status_code == 500
        assert live.greedy().status_code == 200
        assert live.get("/health").json()["status"] == "degraded"


def test_closing_ends_what_is_open_or_tells_it_503(monkeypatch: pytest.MonkeyPatch) -> None:
    for grace in (30.0, 0.3):
        with Live(grace_seconds=grace, max_batch=2) as live, ThreadPoolExecutor(6) as pool:
            with monkeypatch.context() as patched:
                held = Held(live, patched)
                body = {**LONG, "stream": False}
                waiting = [
                    pool.submit(
                        lambda body=body: httpx.post(live.url + "/v1/completions", timeout=60, json=body)
                    )
                    for _ in range(6)
                ]  # type: ignore[misc]
                wait_until(lambda: live.service.engine.load()["open"] == 6)
                live.server.should_exit = True
                wait_until(lambda: not live.service.engine.alive)
                if grace < 1:
                    wait_until(lambda: live.service.engine._give_up)
                held.gate.set()
                answers = [future.result() for future in waiting]
            assert {answer.status_code for answer in answers} == ({200} if grace > 1 else {503})
            with pytest.raises(httpx.TransportError):
                httpx.get(live.url + "/health")


def test_a_request_that_is_on_its_way_when_the_server_closes_is_told_503() -> None:
    with Live() as live, live.connect() as connection, live.connect() as silent:
        connection.sendall(HEAD[:30])
        wait_until(lambda: len(live.server.server_state.connections) == 2)
        live.server.should_exit = True
        wait_until(lambda: not live.service.engine.alive)
        connection.sendall(HEAD[30:] % 15 + b'{"prompt": "x"}')
        answer = receive_all(connection)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"retry-after" in answer.lower()
        assert receive_all(silent) == b""


@pytest.mark.slow
def test_500_disconnects() -> None:
    with Live() as live:
        expected = live.greedy().json()["choices"]
        for attempt in range(500):
            with live.connect() as connection:
                send(connection, {**LONG, "stream": attempt % 2 == 0})
                if attempt % 3:
                    connection.settimeout(0.02)
                    with contextlib.suppress(TimeoutError):
                        connection.recv(100)
        wait_until(lambda: live.service.engine.load()["open"] == 0)
        wait_until(lambda: len(live.server.server_state.connections) <= 1)
        assert live.greedy().json()["choices"] == expected
        assert live.get("/health").json()["status"] == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["header", "body"])
def test_200_slow_connections(kind: str) -> None:
    """A byte a second each: closed after 10 s and 30 s; good requests are answered meanwhile."""
    with Live() as live:
        start = HEAD % 1000 if kind == "body" else b"GET /health HTTP/1.1\r\nHost: x\r\nX: "

        def good(count: int) -> float:
            times = []
            for _ in range(count):
                begin = time.monotonic()
                assert live.greedy().status_code == 200
                times.append(time.monotonic() - begin)
            return statistics.quantiles(times, n=100)[98]

        alone = good(200)
        slow = [live.connect() for _ in range(200)]
        begin = time.monotonic()
        for connection in slow:
            connection.sendall(start)
        meanwhile = good(200)
        closed: dict[socket.socket, float] = {}
        while len(closed) < 200:
            assert time.monotonic() - begin < 45
            for connection in slow:
                if connection in closed:
                    continue
                try:
                    connection.sendall(b"a")
                    connection.settimeout(0.001)
                    if connection.recv(1000):
                        closed[connection] = time.monotonic() - begin
                except TimeoutError:
                    pass
                except OSError:
                    closed[connection] = time.monotonic() - begin
            time.sleep(1)
        for connection in slow:
            connection.close()
        first, last = min(closed.values()), max(closed.values())
        print(
            f"\np99 {alone * 1e3:.1f} ms alone, {meanwhile * 1e3:.1f} ms meanwhile; "
            f"closed after {first:.1f} to {last:.1f} s"
        )
        limit = 30 if kind == "body" else 10
        assert limit - 1 < first <= last < limit + 5
        wait_until(lambda: len(live.server.server_state.connections) <= 1)
