"""`hmoe serve` as a process that is ended and killed under load, also with experts in a file, and started again."""

import json
import shutil
import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.faults.campaign import Case, FaultTest, check
from tests.faults.server_faults import Ask, choose_asks, perform, post, read_asks, write_asks
from tests.serve.helpers import wait_until
from tests.serve.test_offload import count_least
from tests.serve.test_verbs import Process
from tests.train.helpers import run as train_run

CLIENTS = 10


def prepare_run(base: Path) -> None:
    """Train a small run, and write down how a process that is asked nothing else answers."""
    train_run(base / "run")
    (base / "least").write_text(str(count_least(base / "run")))
    with start_process(base / "run", 0) as server:
        url = server.url.removesuffix("/v1")
        write_asks(base, choose_asks(lambda body: post(url, body).json(), 8, 20))
        (base / "alone.json").write_text(ask_alone(url, read_asks(base)))


def start_process(folder: Path, port: int, *options: str) -> Process:
    return Process(folder, "--port", str(port), "--quiet", *options, OMP_NUM_THREADS="1")


def ask_alone(url: str, asks: list[Ask]) -> str:
    """Ask one request after another; return the answers with all their digits."""
    answers = [post(url, ask.body) for ask in asks]
    return json.dumps([answer.json().get("choices", answer.text) for answer in answers])


def end_process(case: Case) -> int:
    """End a server that answers ten clients, by SIGTERM or SIGKILL; one on the same port answers as it did."""
    draw, asks = case.draw(), read_asks(case.base)
    folder, offloaded, options = case.folder / "run", case.folder / "offload", list[str]()
    shutil.copytree(case.base / "run", folder)
    offloaded.mkdir()
    if case.number % 4 < 2:
        options = ["--offload", (case.base / "least").read_text(), "--offload-folder", str(offloaded)]
    turns = [draw.choice(asks).varied(draw, ("whole", "stream"), (1, 16, 128)) for _ in range(CLIENTS)]
    expected = (case.base / "alone.json").read_text()
    port = find_port()
    end = end_in_order if case.number % 2 == 0 else kill
    with start_process(folder, port, *options) as server, ThreadPoolExecutor(CLIENTS) as pool:
        url = server.url.removesuffix("/v1")
        check(ask_alone(url, asks) == expected, f"answers differ with {options}")
        futures = [pool.submit(perform, url, ask) for ask in turns]
        wait_until(lambda: count_open(url) + sum(future.done() for future in futures) >= CLIENTS)
        end(server, lambda: [future.result(90) for future in futures])
    check(not list(offloaded.iterdir()), f"left in the offload folder: {list(offloaded.iterdir())}")
    with start_process(folder, port, *options) as server:
        url = server.url.removesuffix("/v1")
        check(url.endswith(f":{port}"), f"another port than {port}: {url}")
        check(ask_alone(url, asks) == expected, "a server that was started again answers otherwise")
        for file in (folder / "checkpoints").rglob("*.safetensors"):
            file.write_bytes(draw.randbytes(file.stat().st_size))
        check(ask_alone(url, asks) == expected, "answers change with the files of a run that is served")
    return 1


def count_open(url: str) -> int:
    return int(httpx.get(url + "/health", verify=False).json()["open"])


def find_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def end_in_order(server: Process, collect: Callable[[], list[str]]) -> None:
    """Send SIGTERM: exit 0, nothing on stderr, and who had asked is answered or told."""
    code, _, words = server.end(signal.SIGTERM)
    check((code, words) == (0, ""), f"ended with {code}: {words[-300:]}")
    outcomes = set(collect())
    check(outcomes <= {"right", "closing"}, f"came of requests that were open: {outcomes}")


def kill(server: Process, collect: Callable[[], list[str]]) -> None:
    """Send SIGKILL: answers are right or seen to be cut off."""
    server.end(signal.SIGKILL)
    outcomes = {outcome.partition(":")[0] for outcome in collect()}
    check(outcomes <= {"right", "cut"}, f"came of requests that were open: {outcomes}")


TESTS: tuple[FaultTest, ...] = (
    FaultTest("R14g", "SIGTERM and SIGKILL of a server under load",
              "ends in order; no half answer looks whole; the same after", "kills", end_process, 12, prepare_run),
)  # fmt: skip
