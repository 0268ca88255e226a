"""How many tokens per second do eight concurrent clients of `hmoe serve` get, against one?

Random weights; a server in a process of its own, clients in this one, over HTTP on loopback. Every request has
its own prompt of random tokens and draws the same number of new ones. Rounds of one client and of many
alternate; the ratio is the median over rounds.

    python benchmarks/serve.py [--preset hmoe-0.4b-topk --precision bfloat16] [--clients 8] [--rounds 5]
        [--stream]
"""

import argparse
import asyncio
import multiprocessing
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import torch

from hmoe.bench.measure import describe_machine, save_result
from hmoe.config import recipes
from hmoe.data.detokenizer import Detokenizer
from hmoe.model.transformer import build_transformer
from hmoe.serve.engine.types import EngineLimits
from hmoe.serve.http.middleware import RequestLimits
from hmoe.serve.http.server import ConnectionLimits, Server, open_listening_socket
from hmoe.serve.http.service import ServedModel, Service


class NumberTokenizer:
    """A tokenizer of the model's vocabulary, whose tokens are their numbers; its end of text is never wanted."""

    fingerprint, file_name, content, separator = "numbers", "", b"", 0
    ends: tuple[int, ...] = (0,)

    def __init__(self, vocab: int) -> None:
        self.vocab_size = vocab
        self.specials = {"<end>": 0}

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [[int(word) for word in text.split()] for text in texts]

    def decode(self, ids: list[int]) -> str:
        return "".join(f" {i}" for i in ids if i)

    def detokenizer(self, context: Sequence[int] = ()) -> Detokenizer:
        return Detokenizer(self.decode, lambda token: False, context)

    def token_bytes(self, token: int) -> bytes:
        return f" {token}".encode() if token else b""


def run_server(preset: str, precision: str, context: int, clients: int, pipe: Connection) -> None:
    config = recipes.read_recipe(preset)[1].model
    with ThreadPoolExecutor(1) as pool:  # as `hmoe serve` does
        model = (
            pool.submit(build_transformer, config, 0, getattr(torch, precision))
            .result()
            .eval()
            .requires_grad_(False)
        )
    served = ServedModel(model, NumberTokenizer(config.vocab), preset)
    service = Service(served, EngineLimits(clients, 64, context), context, 600)
    listening = open_listening_socket("127.0.0.1", 0)
    Server(
        service, RequestLimits(), ConnectionLimits(), lambda address: pipe.send((address, config.vocab))
    ).run([listening])


async def request_all(http: httpx.AsyncClient, bodies: list[dict[str, Any]]) -> int:
    """Send some requests one after the other; return how many new tokens came."""
    total = 0
    for body in bodies:
        if body["stream"]:
            async with http.stream("POST", "/v1/completions", json=body) as answer:
                total += sum([line.startswith('data: {"') async for line in answer.aiter_lines()])
        else:
            answer = await http.post("/v1/completions", json=body)
            total += answer.raise_for_status().json()["usage"]["completion_tokens"]
    return total


async def measure_rate(url: str, clients: int, requests: int, make_body: Any) -> float:
    """Return the new tokens per second that all clients together get."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as http:
        await http.get("/health")
        start = time.perf_counter()
        totals = await asyncio.gather(
            *(request_all(http, [make_body() for _ in range(requests)]) for _ in range(clients))
        )
        return sum(totals) / (time.perf_counter() - start)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="hmoe-0.4b-topk")
    parser.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2, help="of every client in a round")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    here, there = multiprocessing.Pipe()
    context = args.prompt_tokens + args.new_tokens
    words = (args.preset, args.precision, context, args.clients, there)
    server = multiprocessing.get_context("spawn").Process(target=run_server, args=words, daemon=True)
    server.start()
    url, vocab = here.recv()
    rng = random.Random(0)

    def make_body() -> dict[str, Any]:
        prompt = [rng.randrange(1, vocab) for _ in range(args.prompt_tokens)]
        return {"prompt": prompt, "max_tokens": args.new_tokens, "stream": args.stream, "logit_bias": {"0": -100},
                "temperature": args.temperature, "seed": rng.randrange(2**31)}  # fmt: skip

    rows: list[tuple[float, float]] = []
    for index in range(args.rounds + 1):  # the first is for warmth
        both = {
            n: asyncio.run(measure_rate(url, n, args.requests, make_body))
            for n in ((1, args.clients)[:: 1 - 2 * (index % 2)])
        }
        if index:
            rows.append((both[1], both[args.clients]))
    server.terminate()
    server.join()
    result = {
        **{name: value for name, value in vars(args).items() if name != "out"},
        "machine": describe_machine("cpu"),
        "tokens_per_second_one": median(single for single, _ in rows),
        "tokens_per_second_many": median(many for _, many in rows),
        "ratio": median(many / single for single, many in rows),
        "rounds_one_many": rows,
    }
    for name in ("tokens_per_second_one", "tokens_per_second_many", "ratio"):
        print(f"{name:24s} {result[name]:.2f}")
    name = f"serve-{args.preset}-{args.precision}{'-stream' * args.stream}"
    print(f"written to {save_result(args.out, name, result)}")


if __name__ == "__main__":
    main()
