"""Does Rectify-Router help where its paper says so: experts made from a dense model, at capacity factor 1.0?

A dense model is trained. Of it come 8 experts in every second layer, all copies of the dense layer, so that
every method starts from the same function; then each trains the same number of steps at a small learning
rate, as in the paper. Methods: the dense model trained on; top-1 with gates straight through (the paper's
baseline), + IR, + FR, + both; top-2. A seed changes the dense model, the router and the order of samples.
Finished runs are kept in --runs and not run again.

    python benchmarks/rectify.py [--dense-steps 480] [--steps 480] [--seeds 3] [--runs runs/rectify]
        [--scratch]

With --scratch nothing is upcycled: the same models from random weights.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from neighbours import mean_and_interval, show_half

from hmoe.bench.measure import describe_machine, save_result
from hmoe.config import recipes
from hmoe.runs.open_model import open_model
from hmoe.runs.run_folder import RunFolder
from hmoe.surgery.upcycle import UnitChoice, upcycle_model
from hmoe.train.begin_run import begin_run
from hmoe.train.console import Console
from hmoe.train.loop import train_run

_FULL = {"k": 1, "capacity_factor": 1.0}
METHODS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "top-1": _FULL | {"straight_through": True},
    "top-1 + IR": _FULL | {"rectify": "ir"},
    "top-1 + FR": _FULL | {"rectify": "fr", "priority": "score"},
    "top-1 + FR + IR": _FULL | {"rectify": "fr+ir", "priority": "score", "when": "fewer"},
    "top-2": {"k": 2, "capacity_factor": 1.0, "straight_through": True},
}
_COMMON = ["model.layers=4", "model.ffn=256", "data.batch_tokens=2048", "train.sample_every=0", "train.eval_every=0",
           "train.save_every=1000000", "train.eval_sequences=512"]  # fmt: skip


def make_recipe(router: dict[str, Any] | None, seed: int, steps: int, lr: float, balance: float) -> Any:
    """Make a recipe: warm-up of a tenth of the steps, cosine to a tenth of the learning rate, as in the paper."""
    plan = [f"seed={seed}", f"train.steps={steps}", f"optim.lr={lr}", f"optim.warmup_steps={steps // 10}",
            "optim.schedule=cosine", f"optim.schedule_steps={steps}"]  # fmt: skip
    if router is None:
        return recipes.read_recipe("tiny-dense", [*_COMMON, *plan])[1]
    experts = ["model.moe.widths={shape: equal, total: 2048, experts: 8}", "model.moe.dense_layers=[0, 2]",
               f"model.moe.router={json.dumps({'name': 'top_k', **router})}",
               f"model.moe.load_balance={balance}"]  # fmt: skip
    return recipes.read_recipe("tiny-equal", [*_COMMON, *plan, *experts])[1]


def train_once(config: Any, folder: Path, dense: Path | None) -> dict[str, Any]:
    """Train from the dense run or random weights, unless that was done; return the last row of metrics."""
    metrics = folder / "metrics.jsonl"
    if not (metrics.exists() and "validation_loss" in metrics.read_text()):
        with RunFolder(folder, config) as opened:
            if dense is not None:
                source = open_model(dense, print)
                model = source.model
                if config.model.moe is not None:
                    model = upcycle_model(
                        source.model, config.model, UnitChoice("windows", config.seed), None
                    )[0]
                begin_run(opened, config, model, source.tokenizer, source.begin)
            train_run(config, opened, Console())
    row: dict[str, Any] = json.loads(metrics.read_text().splitlines()[-1])
    return row


def name_folder(arguments: argparse.Namespace, method: str, seed: int) -> Path:
    """Return the folder of a run; what the run depends on stands in its name."""
    letters = "".join(letter for letter in method if letter.isalnum())
    origin = "scratch" if arguments.scratch else f"upcycled-{arguments.dense_steps}"
    path: Path = (
        arguments.runs
        / f"{origin}-{letters}-{arguments.steps}-{arguments.lr:g}-{arguments.load_balance:g}-{seed}"
    )
    return path


def summarize_seeds(
    method: str, rows: list[dict[str, Any]], base_rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return a method's row in the table: means over seeds, and the difference to the base, seed by seed."""
    losses, base_losses = ([row["validation_loss"] for row in group] for group in (rows, base_rows))
    mean, half = mean_and_interval([loss - base for loss, base in zip(losses, base_losses, strict=True)])
    slots = [row["slots"] for row in rows if "slots" in row]
    return {
        "method": method, "validation_loss": statistics.mean(losses), "difference": mean, "interval": half,
        "seeds": losses, "flops": statistics.mean(row["flops"] for row in rows),
        "slots_last_step": {
            name: statistics.mean(sum(counts[name]) for counts in slots) for name in (slots[0] if slots else {})
        },
    }  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dense-steps", type=int, help="default: 480")
    parser.add_argument("--steps", type=int, default=480)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, help="default: 3e-4, with --scratch 3e-3")
    parser.add_argument("--load-balance", type=float, default=1e-2)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--runs", type=Path, default=Path("runs/rectify"))
    parser.add_argument("--scratch", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    if arguments.scratch and arguments.dense_steps is not None:
        parser.error("--dense-steps has no effect with --scratch")
    arguments.dense_steps = arguments.dense_steps or 480
    arguments.lr = arguments.lr or (3e-3 if arguments.scratch else 3e-4)
    return arguments


def main() -> None:
    arguments = parse_arguments()
    rows_by_method: dict[str, list[dict[str, Any]]] = {
        method: [] for method in dict.fromkeys(["top-1", *arguments.methods])
    }
    for seed in range(arguments.seeds):
        dense = None if arguments.scratch else arguments.runs / f"source-{arguments.dense_steps}-{seed}"
        if dense is not None:
            train_once(make_recipe(None, seed, arguments.dense_steps, 3e-3, 0), dense, None)
        for method, rows in rows_by_method.items():
            config = make_recipe(METHODS[method], seed, arguments.steps, arguments.lr, arguments.load_balance)
            rows.append(train_once(config, name_folder(arguments, method, seed), dense))
    base_rows = rows_by_method["top-1"]
    measured = [summarize_seeds(method, rows, base_rows) for method, rows in rows_by_method.items()]
    print(
        "method             validation loss   difference to top-1   dropped of first choices in the last step"
    )
    for row in measured:
        dropped = f"{row['slots_last_step']['dropped']:.0f}" if row["slots_last_step"] else ""
        difference = f"{row['difference']:+.4f} {show_half(row['interval'])}"
        print(f"{row['method']:16s}   {row['validation_loss']:.4f}            {difference:20s}    {dropped}")
    about = {
        "scratch": arguments.scratch,
        "steps": arguments.steps,
        "lr": arguments.lr,
        "load_balance": arguments.load_balance,
    }
    name = "rectify-scratch" if arguments.scratch else "rectify-upcycled"
    print(
        save_result(arguments.out, name, {**about, "machine": describe_machine("cpu"), "methods": measured})
    )


if __name__ == "__main__":
    main()
