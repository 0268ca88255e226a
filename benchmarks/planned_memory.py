"""Do the tensors of a step take as much memory as `hmoe plan` says? Shapes and sharings on this machine's CPU.

    python benchmarks/planned_memory.py [--processes 1 2 4] [--out FILE]

Each is a run of `hmoe bench step --alone`, which measures the largest moment of a step by the profiler. Ratios are
planned bytes over measured ones, of the process that has most; what the system counts (resident) is more.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

DATA = ("data.path=corpus", "data.tokenizer=bytes", "train.activation_checkpointing=false")
WIDE = (
    "tiny", *DATA, "model.dim=512", "model.layers=4", "model.heads=8", "model.moe.widths.total=3072",
    "data.batch_tokens=2048", "data.micro_batches=4",
)  # fmt: skip
SHAPES = {
    "quickstart": ("quickstart", *DATA, "data.micro_batches=4"),
    "4 layers of 512": WIDE,
    "one part for each of 4": (*WIDE, "data.batch_tokens=512"),
    "zero3": (*WIDE, "parallel.shard=zero3"),
    "ddp": (*WIDE, "parallel.shard=ddp"),
    "exact": (*WIDE, "parallel.exact=true"),
    "top-p, grouped queries, norms": (
        *WIDE, "model.kv_heads=2", "model.qk_norm=head", "model.moe.router={name: top_p, p: 0.5}",
    ),
    "bfloat16": (*WIDE, "train.precision=bfloat16"),
    "checkpointing, 8 layers": (
        *WIDE, "model.layers=8", "data.batch_tokens=4096", "train.activation_checkpointing=true",
    ),
    "dense, vocabulary 16,000": (
        "tiny-dense", *DATA, "model.dim=512", "model.layers=4", "model.heads=8", "model.ffn=1536", "model.vocab=16000",
        "data.micro_batches=4", "data.batch_tokens=2048",
    ),
}  # fmt: skip


def measure(name: str, recipe: tuple[str, ...], size: str, folder: Path) -> dict[str, Any]:
    """Return the row of a shape."""
    options = ["--alone", "--processes", size, "--rounds", "3", "--out", str(folder)]
    command = [sys.executable, "-m", "hmoe", "bench", "step", *recipe, *options]
    result = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)}: {result.stderr}")
    (file,) = folder.glob("*.json")
    row = json.loads(file.read_text())["rows"][0]
    file.unlink()
    kept = ("peak_memory_bytes", "planned_memory_bytes", "resident_bytes")
    figures = {key: row[key] for key in kept}
    ratio = figures["planned_memory_bytes"] / figures["peak_memory_bytes"]
    shown = " ".join(f"{key} {value / 1e6:.0f} MB" for key, value in figures.items())
    print(f"{name:34} {size} processes: {shown}, ratio {ratio:.3f}", flush=True)
    return {"shape": name, "processes": int(size), "recipe": list(recipe), **figures, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", nargs="*", default=["1", "2", "4"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            measure(name, recipe, size, Path(folder))
            for size in options.processes
            for name, recipe in SHAPES.items()
        ]
    worst = max(abs(row["ratio"] - 1) for row in rows)
    print(f"largest difference {worst:.1%}")
    if options.out:
        options.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
