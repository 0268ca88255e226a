"""A line per request, without its text; neither a slow nor a vanished reader is waited for."""

import threading
import time
from datetime import datetime

import pytest

from hmoe.serve.http import request_log
from hmoe.serve.http.request_log import RequestLog, RequestRecord, format_request
from tests.serve.helpers import Live, model, wait_until

SECRET = "It was a dark"


def test_every_request_is_told_without_its_text() -> None:
    records: list[RequestRecord] = []
    with Live(model(vocab=257), log=records.append, api_key="k") as live:
        key = {"Authorization": "Bearer k"}
        body = {"prompt": [SECRET, "and stormy"], "max_tokens": 5, "n": 2, "logit_bias": {"256": -100}}
        live.post("/v1/completions", body, **key)
        live.post("/v1/completions", {**body, "stream": True}, **key)
        chat = {
            "messages": [{"role": "user", "content": SECRET}],
            "max_tokens": 3,
            "logit_bias": {"256": -100},
        }
        live.post("/v1/chat/completions", chat, **key)
        live.post("/v1/completions?prompt=dark", {**body, "max_tokens": 999}, **key)
        live.post("/v1/completions", body)
        live.get("/health")
        live.get("/%0adark%20%00", **key)
        wait_until(lambda: len(records) == 7)
    text = "\n".join(map(format_request, records))
    shown = [(r.method, r.path, r.status, r.prompt_tokens, r.new_tokens) for r in records]
    prompts = len(SECRET) + len("and stormy")
    assert shown[:2] == [("POST", "/v1/completions", 200, prompts, 20)] * 2
    assert shown[2][:3] == ("POST", "/v1/chat/completions", 200)
    assert (shown[2][3] or 0) > len(SECRET)
    assert shown[2][4] == 3
    assert shown[3:6] == [
        ("POST", "/v1/completions", 400, None, None),
        ("POST", "/v1/completions", 401, None, None),
        ("GET", "/health", 200, None, None),
    ]
    assert "stormy" not in text
    assert "?" not in text
    assert text.splitlines()[-1].startswith("GET /\\ndark\\x20\\x00 404 prompt=- new=- seconds=0.")
    assert all(0 <= r.seconds < 60 for r in records)


def test_what_a_client_sends_stays_one_word() -> None:
    line = format_request(RequestRecord("G ET\r", "/\x1b[31m\u00e9\udc80" + "a" * 300, 404, 1.23456, 7, 8))
    words = line.split(" ")
    assert words[0] == "G\\x20ET\\r"
    assert words[1].startswith("/\\x1b[31m\\xe9\\udc80aaa")
    assert words[1].endswith("aaa...")
    assert words[2:] == ["404", "prompt=7", "new=8", "seconds=1.235"]
    assert line.isascii()
    assert line.isprintable()


def test_lines_are_written_in_order_with_their_time() -> None:
    lines: list[str] = []
    with RequestLog(lines.append) as log:
        for status in (200, 404):
            log.add(RequestRecord("GET", "/health", status, 0.5))
    assert [line.split(" ")[3] for line in lines] == ["200", "404"]
    assert all(line.endswith("\n") and line.count("\n") == 1 for line in lines)
    assert abs(datetime.fromisoformat(lines[0].split(" ")[0]).timestamp() - time.time()) < 3600


def test_a_reader_that_does_not_read_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_log, "_MOST_WAITING", 3)
    lines: list[str] = []
    full, blocked = threading.Event(), threading.Event()

    def write(line: str) -> None:
        blocked.set()
        full.wait(60)
        lines.append(line)

    log = RequestLog(write)
    for status in range(10):
        log.add(RequestRecord("GET", "/", status, 0.0))
        assert blocked.wait(60)
    log.close(seconds=0.01)  # nobody reads: given up
    assert lines == []
    full.set()
    wait_until(lambda: len(lines) == 4)
    log.add(RequestRecord("GET", "/", 10, 0.0))
    log.close()
    assert [line.split(" ")[3] for line in lines if "GET" in line] == ["0", "1", "2", "3", "10"]
    assert [line.split(" ", 1)[1] for line in lines if "GET" not in line] == [
        "6 lines were lost: they were not read in time\n"
    ]


def test_a_reader_that_has_gone_is_no_failure() -> None:
    lines: list[str] = []

    def write(line: str) -> None:
        lines.append(line)
        raise BrokenPipeError

    with RequestLog(write) as log:
        for _ in range(2):
            log.add(RequestRecord("GET", "/", 200, 0.0))
    assert len(lines) == 2
