"""A whole training step of unequal experts against equal ones, and where its time goes.

quickstart against quickstart-equal (same total width), tokens per second, interleaved in one process, medians; then the
share of each kind of operation in a step. Writes benchmarks/results/step-<date>.json.

    python benchmarks/step.py [--rounds 12] [--precision float32]
"""

import argparse
import datetime
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from layer import processor
from torch.profiler import ProfilerActivity, profile

import hmoe
from hmoe import recipes
from hmoe.data.batches import Batches
from hmoe.data.corpus import open_corpus
from hmoe.model.transformer import build, set_check_finite
from hmoe.train.optim import adamw
from hmoe.train.step import train_step

PARTS = {  # the first part whose word is in an operation's name
    "attention": ("attention",),
    "optimiser": ("adamw", "foreach", "norm_"),
    "matrix products": ("mm",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--precision", default="float32")
    arguments = parser.parse_args()
    runs = {name: Run(name, arguments.precision) for name in ("quickstart", "quickstart-equal", "quickstart-dense")}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(arguments.rounds + 3):
        for name, run in runs.items():
            elapsed = run.step()
            if number >= 3:
                seconds[name].append(elapsed)
    rows = []
    for name, run in runs.items():
        ratios = [own / theirs for own, theirs in zip(seconds["quickstart-equal"], seconds[name], strict=True)]
        median = statistics.median(seconds[name])
        row = {
            "preset": name,
            "tokens_per_second": run.tokens / median,
            "ratio_to_equal": statistics.median(ratios),
            "gflops_per_second": run.flops / median / 1e9,
        }
        rows.append(row)
        print(f"{name:18s} {row['tokens_per_second']:8.0f} tokens/s  {row['ratio_to_equal']:.2f} of equal experts")
    shares = share_of_time(runs["quickstart"])
    print("where a quickstart step goes: " + ", ".join(f"{part} {share:.0%}" for part, share in shares.items()))
    machine = {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "hmoe": hmoe.__version__,
        "date": datetime.date.today().isoformat(),
    }
    path = Path(__file__).parent / "results" / f"step-{arguments.precision}-{machine['date']}.json"
    path.write_text(json.dumps({"machine": machine, "rows": rows, "time_shares": shares}, indent=1) + "\n")
    print(f"written to {path}")


class Run:
    """A preset in training, one step at a time."""

    def __init__(self, name: str, precision: str) -> None:
        self.config = recipes.load(name, [f"train.precision={precision}"])[1]
        index = open_corpus(f"bpe:{self.config.model.vocab}")
        self.batches = Batches(index, self.config.data, 0)
        self.model = build(self.config.model, 0)
        set_check_finite(self.model, False)
        self.optimizer = adamw(self.model, self.config.optim)
        self.number, self.tokens, self.flops = 0, self.config.data.batch_tokens, 0

    def step(self) -> float:
        batch = self.batches[self.number]
        start = time.perf_counter()
        record = train_step(self.model, self.optimizer, batch, self.config, self.number)
        self.number, self.flops = self.number + 1, record.flops
        return time.perf_counter() - start


def share_of_time(run: Run) -> dict[str, float]:
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(3):
            run.step()
    sums: dict[str, float] = {}
    for event in profiler.key_averages():
        item: Any = event
        part = next((p for p, words in PARTS.items() if any(w in item.key for w in words)), "the rest, elementwise")
        sums[part] = sums.get(part, 0.0) + item.self_cpu_time_total
    total = sum(sums.values())
    return {part: round(value / total, 3) for part, value in sorted(sums.items(), key=lambda pair: -pair[1])}


if __name__ == "__main__":
    main()
