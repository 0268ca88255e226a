"""Is a step as long as `hmoe plan --hardware` says? Five shapes on this machine, by 2 and 4 processes.

    python benchmarks/simulated_steps.py [--processes 2 4] [--rounds 7] [--out FILE]

The machine is measured by `hmoe bench machine`, on shapes of its own, before and after the steps, as it may change: the
mean of both simulations counts. Ratios are simulated seconds over measured ones.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CORPUS = ("data.path=corpus", "data.tokenizer=bytes", "train.activation_checkpointing=false")
SHAPES = {
    "zero2, 4 layers of 192": ("quickstart", "data.batch_tokens=8192", "data.micro_batches=4", *CORPUS),
    "zero3, 6 layers of 192, top-p": (
        "tiny", "model.dim=192", "model.layers=6", "model.moe.widths.total=3072",
        "model.moe.router={name: top_p, p: 0.5}", "data.batch_tokens=8192", "data.micro_batches=8",
        "parallel.shard=zero3", *CORPUS,
    ),
    "ddp, 3 layers of 320, vocabulary 4,096": (
        "tiny", "model.dim=320", "model.layers=3", "model.heads=5", "model.moe.widths.total=4096", "model.vocab=4096",
        "data.batch_tokens=8192", "data.micro_batches=4", "parallel.shard=ddp", *CORPUS,
    ),
    "zero2, dense, 4 layers of 256": (
        "tiny-dense", "model.dim=256", "model.layers=4", "model.heads=4", "model.ffn=1024", "data.batch_tokens=8192",
        "data.micro_batches=4", *CORPUS,
    ),
    "zero2, checkpointing, 8 layers of 128": (
        "tiny", "model.dim=128", "model.layers=8", "model.heads=2", "data.sequence_length=256",
        "data.batch_tokens=16384", "data.micro_batches=4", "data.path=corpus", "data.tokenizer=bytes",
        "train.activation_checkpointing=true",
    ),
}  # fmt: skip


def call(*words: str) -> str:
    """Run `hmoe`, and return what it printed."""
    command = [sys.executable, "-m", "hmoe", *words]
    result = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ)
    if result.returncode:
        raise SystemExit(f"{' '.join(words)}: {result.stderr}")
    return result.stdout


def measure(size: str, rounds: str, folder: Path) -> list[dict[str, Any]]:
    """Return a row for each shape."""
    machines, rows = [folder / f"before-{size}.yaml", folder / f"after-{size}.yaml"], []
    call("bench", "machine", "--processes", size, "--rounds", rounds, "--out", str(machines[0]))
    for name, recipe in SHAPES.items():
        call(
            "bench",
            "step",
            *recipe,
            "--alone",
            "--processes",
            size,
            "--rounds",
            rounds,
            "--out",
            str(folder / "step"),
        )
        (file,) = (folder / "step").glob("*.json")
        rows.append(
            {
                "shape": name,
                "processes": int(size),
                "recipe": list(recipe),
                **json.loads(file.read_text())["rows"][0],
            }
        )
        file.unlink()
    call("bench", "machine", "--processes", size, "--rounds", rounds, "--out", str(machines[1]))
    for row in rows:
        plans = [
            json.loads(
                call("plan", *row["recipe"], "--processes", size, "--hardware", str(machine), "--json")
            )
            for machine in machines
        ]
        tokens = plans[0]["micro_batches"] * plans[0]["micro_batch_tokens"]
        row["measured_seconds"] = tokens / row["tokens_per_second"]
        row["simulated_seconds"] = sum(plan["step"]["seconds"] for plan in plans) / 2
        row["ratio"] = row["simulated_seconds"] / row["measured_seconds"]
        row["by_part_seconds"] = plans[1]["step"]["by_part_seconds"]
        print(
            f"{row['shape']:40} {size} processes: measured {row['measured_seconds']:.3f} s, "
            f"simulated {row['simulated_seconds']:.3f} s, ratio {row['ratio']:.2f}",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", nargs="*", default=["2", "4"])
    parser.add_argument("--rounds", default="7")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for size in options.processes for row in measure(size, options.rounds, Path(folder))]
    worst = max(abs(row["ratio"] - 1) for row in rows)
    print(f"largest difference {worst:.0%}")
    if options.out:
        options.out.write_text(json.dumps({"rounds": int(options.rounds), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
