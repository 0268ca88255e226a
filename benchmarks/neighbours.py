"""Which router or addition helps at the same training FLOPs, on real text and a small scale?

Every preset is trained until it has spent the same FLOPs, counted from the experts that were really
activated, with several seeds; the table has the mean validation loss with its 95% interval (Student's t). A
seed changes weights and sample order. Finished runs are kept in --runs and not run again.

    python benchmarks/neighbours.py [--flops 4e12] [--seeds 3] [--presets tiny tiny-rectify]
        [--runs runs/neighbours]
"""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from hmoe.bench.measure import describe_machine, save_result
from hmoe.config import recipes
from hmoe.config.counts import count_parameters
from hmoe.runs.run_folder import RunFolder
from hmoe.train.console import Console
from hmoe.train.loop import train_run

PRESETS = ["tiny-dense", "tiny-equal", "tiny-control", "tiny", "tiny-topp", "tiny-hyper", "tiny-moepp",
           "tiny-adamoe", "tiny-deepseek", "tiny-gshard", "tiny-switch", "tiny-top1", "tiny-rectify",
           "tiny-expert-choice"]  # fmt: skip
NOT_CAUSAL = {"tiny-expert-choice"}


def train_preset(preset: str, seed: int, flops: float, folder: Path) -> dict[str, Any]:
    """Train a preset until the FLOPs are spent, unless that was done; return the last row of its metrics."""
    budget = [
        "train.steps=null",
        f"train.flops={flops}",
        f"seed={seed}",
        "train.sample_every=0",
        "train.eval_every=0",
    ]
    config = recipes.read_recipe(preset, [*budget, "train.eval_sequences=512", "train.save_every=1000000"])[1]
    with RunFolder(folder, config) as opened:
        train_run(config, opened, Console())
    row: dict[str, Any] = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return row | {"parameters": sum(count_parameters(config.model).values())}


def mean_and_interval(values: list[float]) -> tuple[float, float | None]:
    """Return the mean and half of its 95% interval; one value has none."""
    mean, count = statistics.mean(values), len(values)
    if count < 2:
        return mean, None
    return mean, float(student.ppf(0.975, count - 1)) * statistics.stdev(values) / math.sqrt(count)


def show_half(half: float | None) -> str:
    """Return half of an interval as a column of a table."""
    return "(one seed)" if half is None else f"± {half:.4f}"


def summarize_seeds(preset: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the row of a preset in the table: means over its seeds."""
    mean, half = mean_and_interval([row["validation_loss"] for row in rows])
    dropped = [sum(row["slots"]["dropped"]) for row in rows if "slots" in row]
    return {
        "preset": preset, "validation_loss": mean, "interval": half, "seeds": [row["validation_loss"] for row in rows],
        "parameters": rows[0]["parameters"], "tokens": statistics.mean(row["tokens"] for row in rows),
        "activated_parameters": statistics.mean(row["activated_parameters"] for row in rows),
        "flops": statistics.mean(row["flops"] for row in rows),
        "dropped_last_step": statistics.mean(dropped) if dropped else None,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flops", type=float, default=4e12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--runs", type=Path, default=Path("runs/neighbours"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    summaries = []
    for preset in arguments.presets:
        folders = [arguments.runs / f"{preset}-{arguments.flops:g}-{seed}" for seed in range(arguments.seeds)]
        rows = [train_preset(preset, seed, arguments.flops, folder) for seed, folder in enumerate(folders)]
        summaries.append(summarize_seeds(preset, rows))
    print("preset              validation loss      parameters  activated      tokens   dropped")
    for row in sorted(summaries, key=lambda row: row["validation_loss"]):
        dropped = "" if row["dropped_last_step"] is None else f"{row['dropped_last_step']:.0f}"
        note = "  not causal: not comparable" if row["preset"] in NOT_CAUSAL else ""
        print(
            f"{row['preset']:18s}  {row['validation_loss']:.4f} {show_half(row['interval'])}  "
            f"{row['parameters']:>13,}  {row['activated_parameters']:>9,.0f}  {row['tokens']:>10,.0f}  "
            f"{dropped:>8s}{note}"
        )
    measured = {"flops": arguments.flops, "machine": describe_machine("cpu"), "presets": summaries}
    print(save_result(arguments.out, "neighbours", measured))


if __name__ == "__main__":
    main()
