"""How many tokens per second does an engine write of whose experts a part lies in a file, beside one without?

    python benchmarks/serve_offload.py [--share 0.5] [--skew 1.0] [--clients 1 4] [--out FILE]

A random model whose router prefers some experts (a bias of -0.02 x skew times the logarithm of an expert's rank,
widths drawn over the ranks), in the engine of `hmoe serve`, without HTTP. Both are measured in turn; a round before
them counts for nothing. Answers must be equal. Ratios are medians over rounds.
"""

import argparse
import contextlib
import json
import os
import queue
import random
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hmoe.data.tokenizer import ByteTokenizer
from hmoe.hub.save import save_model
from hmoe.model.generate import Sampling
from hmoe.model.transformer import Transformer, build_transformer
from hmoe.parallel.offloaded_model import OffloadForReading
from hmoe.runs.open_model import open_model
from hmoe.serve.engine.engine import Engine
from hmoe.serve.engine.types import EngineLimits, SequenceEvent, SequenceTask
from hmoe.specs.model import ModelSpec, MoESpec
from hmoe.specs.routers.top_k import TopK
from hmoe.specs.widths import geometric

CONTEXT = 256


def make_model(skew: float, dim: int, layers: int) -> Transformer:
    """Return a model whose layers have 16 experts, the widest 8 times as wide as the narrowest."""
    widths = list(geometric(8192, 16, ratio=8))
    random.Random(0).shuffle(widths)
    router = TopK(k=2, bias_rate=0.001)
    spec = ModelSpec(
        dim=dim, layers=layers, heads=8, vocab=512, moe=MoESpec(widths=tuple(widths), router=router)
    )
    model = build_transformer(spec, seed=0).eval()
    for block in model.blocks:
        bias_E = block.ffn.router.bias_E
        bias_E.data = -0.02 * skew * torch.arange(1.0, len(bias_E) + 1).log()[torch.randperm(len(bias_E))]
    return model


def write(engine: Engine, prompts: list[tuple[int, ...]], num_tokens: int) -> list[list[int]]:
    """Return the tokens that an engine writes after some prompts at the same time, the likeliest ones."""
    events: queue.SimpleQueue[SequenceEvent] = queue.SimpleQueue()
    never = {ByteTokenizer().separator: -1e9}
    tasks = [
        SequenceTask(ids, num_tokens, Sampling(temperature=0), bias=never, logprobs=0) for ids in prompts
    ]
    engine.submit(tasks, events.put, 600)
    texts: list[list[int]] = [[] for _ in tasks]
    open_texts = len(texts)
    while open_texts:
        event = events.get(timeout=600)
        assert event.failure is None, event.failure
        texts[event.index] += [entry.token for entry in event.entries]
        open_texts -= event.finish is not None
    return texts


def measure(engines: dict[str, Engine], num_clients: int, rounds: int, num_tokens: int) -> dict[str, Any]:
    """Return tokens per second of each engine, and the median of their ratios."""
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(rounds + 1):
        generator = random.Random(turn)
        prompts = [tuple(generator.randrange(256) for _ in range(16)) for _ in range(num_clients)]
        texts = {}
        for name, engine in engines.items():
            begun = time.perf_counter()
            texts[name] = write(engine, prompts, num_tokens)
            rates[name].append(num_clients * num_tokens / (time.perf_counter() - begun))
        assert texts["memory"] == texts["offload"]
    ratios = [
        elsewhere / memory
        for memory, elsewhere in zip(rates["memory"][1:], rates["offload"][1:], strict=True)
    ]
    figures = {f"{name}_tokens_per_second": statistics.median(rates[name][1:]) for name in engines}
    return {"clients": num_clients, **figures, "ratio": statistics.median(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", type=float, default=0.5, help="of the experts' weights in memory")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--skew", type=float, default=1.0)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as scratch:
        folder = Path(scratch) / "model"
        model = make_model(options.skew, options.dim, options.layers)
        save_model(model, ByteTokenizer(), folder, CONTEXT)
        weights = sum(parameter.nbytes for name, parameter in model.named_parameters() if ".ffn.w_" in name)
        memory = OffloadForReading(Path(scratch), round(options.share * weights))
        models = {
            "memory": open_model(folder, print).model,
            "offload": open_model(folder, print, memory).model,
        }
        offload, rows = memory.offload, []
        assert offload is not None
        assert offload.next_experts is not None
        with contextlib.ExitStack() as stack:
            limits = EngineLimits(max(options.clients), 64, CONTEXT)
            engines = {
                name: stack.enter_context(Engine(each, ByteTokenizer(), limits))
                for name, each in models.items()
            }
            for num_clients in options.clients:
                counts, guesses = replace(offload.cache.counts), offload.next_experts
                before = (guesses.num_guessed, guesses.num_right)
                row = measure(engines, num_clients, options.rounds, options.new_tokens)
                hits, misses = (
                    getattr(offload.cache.counts, n) - getattr(counts, n) for n in ("hits", "misses")
                )
                guessed, right = guesses.num_guessed - before[0], guesses.num_right - before[1]
                row |= {"hit_rate": hits / (hits + misses), "right_guesses": right / max(guessed, 1)}
                rows.append(row)
                print(" ".join(f"{k} {v:.3g}" for k, v in row.items()), flush=True)
        offload.close()
    if options.out is not None:
        machine = {"cores": os.cpu_count(), "threads": torch.get_num_threads()}
        words = {key: value for key, value in vars(options).items() if key != "out"}
        options.out.write_text(
            json.dumps({**words, "expert_bytes": weights, **machine, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
