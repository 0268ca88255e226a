"""Small models, and a way to ask the engine and wait."""

import contextlib
import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import httpx
import torch

from hmoe.config.recipes import check_model
from hmoe.data.tokenizer import ByteTokenizer
from hmoe.model.generate import Sampling
from hmoe.model.transformer import Transformer, build_transformer
from hmoe.serve.engine.engine import Engine
from hmoe.serve.engine.types import (
    EngineLimits,
    SequenceEvent,
    SequenceFailure,
    SequenceTask,
    TokenLogprob,
    UsageCounts,
)
from hmoe.serve.http.request_log import RequestRecord
from hmoe.specs.model import ModelSpec

TOKENIZER = ByteTokenizer()
TOP_K = {"name": "top_k", "k": 2}
TOP_P = {"name": "top_p", "p": 0.6}
CONTEXT = 96
GREEDY = Sampling(temperature=0)
NO_END = {TOKENIZER.separator: -1e9}


def config(**changes: object) -> ModelSpec:
    base = {
        "dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "vocab": 300,
        "moe": {"widths": [16, 48, 32, 24], "router": TOP_K},
    }  # fmt: skip
    return check_model({**base, **changes})


def model(router: dict[str, object] | None = None, **changes: object) -> Transformer:
    """Random weights; the router's are larger than at the start of training, so that tokens differ in their experts."""
    moe = {"widths": [16, 48, 32, 24], "router": router or TOP_K}
    built = build_transformer(config(**{"moe": moe, **changes}), seed=3).eval()
    for name, parameter in built.named_parameters():
        if "router" in name:
            parameter.data *= 3
    return built


def engine(built: Transformer | None = None, **limits: int) -> Engine:
    return Engine(built or model(), TOKENIZER, EngineLimits(**{"context_length": CONTEXT, **limits}))


@dataclass
class Answer:
    text: str = ""
    entries: list[TokenLogprob] = field(default_factory=list)
    prompt_entries: list[TokenLogprob] = field(default_factory=list)
    finish: str | None = None
    failure: SequenceFailure | None = None
    used: UsageCounts | None = None
    events: int = 0

    @property
    def ids(self) -> list[int]:
        return [entry.token for entry in self.entries]

    def add(self, event: SequenceEvent) -> None:
        self.text += event.text
        self.entries += event.entries
        self.prompt_entries += event.prompt_entries
        self.finish, self.failure, self.used = event.finish, event.failure, event.used
        self.events += 1

    @property
    def ended(self) -> bool:
        return bool(self.finish or self.failure)


class Asked:
    """A job and what came of it."""

    def __init__(self, of: Engine, asks: Sequence[SequenceTask], seconds: float = 60) -> None:
        self.answers = [Answer() for _ in asks]
        self.first = threading.Event()
        self._events: queue.SimpleQueue[SequenceEvent] = queue.SimpleQueue()
        self.job = of.submit(asks, self._deliver, seconds)

    def _deliver(self, event: SequenceEvent) -> None:
        self._events.put(event)
        self.first.set()

    def wait(self) -> list[Answer]:
        while not all(answer.ended for answer in self.answers):
            event = self._events.get(timeout=60)
            self.answers[event.index].add(event)
        return self.answers


def ask(of: Engine, *asks: SequenceTask) -> list[Answer]:
    return Asked(of, asks).wait()


def greedy(ids: tuple[int, ...], **changes: object) -> SequenceTask:
    return SequenceTask(
        ids, **{"max_tokens": 12, "sampling": GREEDY, "logprobs": 3, "bias": NO_END, **changes}
    )  # type: ignore[arg-type]


def prompt(seed: int, length: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, 256, (length,), generator=generator).tolist())


class Live:
    """A server in a thread of this process."""

    def __init__(self, built: Transformer | None = None, **changes: object) -> None:
        from hmoe.serve.http.middleware import RequestLimits
        from hmoe.serve.http.server import ConnectionLimits, Server, open_listening_socket
        from hmoe.serve.http.service import ServedModel, Service

        def pick(kind: type) -> dict[str, object]:
            return {name: value for name, value in changes.items() if name in kind.__dataclass_fields__}

        self.model = built or model()
        limits = EngineLimits(**{"context_length": CONTEXT, **pick(EngineLimits)})  # type: ignore[arg-type]
        named = {name: changes[name] for name in ("chat_template", "begin") if name in changes}
        served = ServedModel(self.model, TOKENIZER, "small", **named)  # type: ignore[arg-type]
        seconds = float(changes.get("seconds", 60))  # type: ignore[arg-type]
        self.service = Service(served, limits, int(changes.get("max_tokens", CONTEXT)), seconds)  # type: ignore[call-overload]
        guard, connections = RequestLimits(**pick(RequestLimits)), ConnectionLimits(**pick(ConnectionLimits))  # type: ignore[arg-type]
        started = threading.Event()
        log: Callable[[RequestRecord], None] | None = changes.get("log")  # type: ignore[assignment]
        self.server = Server(self.service, guard, connections, lambda address: started.set(), log)
        listening = open_listening_socket("127.0.0.1", 0)
        self.port = listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self.server.run, args=([listening],))
        self._thread.start()
        self._client = httpx.Client(base_url=self.url, timeout=60)
        assert started.wait(30)

    def close(self) -> None:
        self._client.close()
        self.server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()

    def __enter__(self) -> "Live":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def raw(self, data: bytes) -> bytes:
        """What comes back until the server closes."""
        with self.connect() as connection:
            with contextlib.suppress(OSError):
                connection.sendall(data)
            return receive_all(connection)

    def post(self, path: str, body: object, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **headers}
        return self._client.post(path, content=content, headers=headers)

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self._client.get(path, headers=headers)

    def greedy(self) -> httpx.Response:
        """The good request that must always be answered alike."""
        body = {"prompt": "It was a dark", "max_tokens": 12, "temperature": 0, "logprobs": 2, "seed": 0}
        return self.post("/v1/completions", body)

    def metric(self, name: str) -> float:
        lines = [line for line in self.get("/metrics").text.splitlines() if line.startswith(name + " ")]
        return float(lines[0].split()[1])


def receive_all(connection: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            data += piece
    return data


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
