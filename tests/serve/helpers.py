"""Small models, and a way to ask the engine and wait."""

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from hmoe.architecture import ModelConfig
from hmoe.data.tokenizer import ByteTokenizer
from hmoe.model.transformer import Transformer, build
from hmoe.serve.ask import Ask, Entry, Event, Failure, Limits, Used
from hmoe.serve.engine import Engine

TOKENIZER = ByteTokenizer()
TOP_K = {"name": "top_k", "k": 2}
TOP_P = {"name": "top_p", "p": 0.6}
CONTEXT = 96


def config(**changes: object) -> ModelConfig:
    base = {
        "dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "vocab": 300,
        "moe": {"widths": [16, 48, 32, 24], "router": TOP_K},
    }  # fmt: skip
    return ModelConfig.model_validate({**base, **changes})


def model(router: dict[str, object] | None = None, **changes: object) -> Transformer:
    """Random weights; the router's are larger than at the start of training, so that tokens differ in their experts."""
    moe = {"widths": [16, 48, 32, 24], "router": router or TOP_K}
    built = build(config(**{"moe": moe, **changes}), seed=3).eval()
    for name, parameter in built.named_parameters():
        if "router" in name:
            parameter.data *= 3
    return built


def engine(built: Transformer | None = None, **limits: int) -> Engine:
    return Engine(built or model(), TOKENIZER, Limits(**{"context_length": CONTEXT, **limits}))


@dataclass
class Answer:
    text: str = ""
    entries: list[Entry] = field(default_factory=list)
    prompt_entries: list[Entry] = field(default_factory=list)
    finish: str | None = None
    failure: Failure | None = None
    used: Used | None = None
    events: int = 0

    @property
    def ids(self) -> list[int]:
        return [entry.token for entry in self.entries]

    def add(self, event: Event) -> None:
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

    def __init__(self, of: Engine, asks: Sequence[Ask], seconds: float = 60) -> None:
        self.answers = [Answer() for _ in asks]
        self.first = threading.Event()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.job = of.submit(asks, self._deliver, seconds)

    def _deliver(self, event: Event) -> None:
        self._events.put(event)
        self.first.set()

    def wait(self) -> list[Answer]:
        while not all(answer.ended for answer in self.answers):
            event = self._events.get(timeout=60)
            self.answers[event.index].add(event)
        return self.answers


def ask(of: Engine, *asks: Ask) -> list[Answer]:
    return Asked(of, asks).wait()


def prompt(seed: int, length: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, 256, (length,), generator=generator).tolist())
