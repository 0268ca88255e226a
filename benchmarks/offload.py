"""What do experts on disk cost in training? Time by time beside a run with all of them in memory, and under a limit.

    python benchmarks/offload.py RECIPE [KEY=VALUE ...] [--offload KEY=VALUE ...] [--limit-gb GB] [--out FILE]

Each round trains both for a few steps in processes of their own, in turn. Printed: seconds of a step and their ratio,
the bytes that a step moves, how fast the disk is, and the memory: planned, the most that was taken (anonymous memory,
which the system cannot take back) less what a run of almost no model takes. With --limit-gb the run with experts on
disk may take no more than that, its files in memory included: the system enforces it (control groups; needs root).
"""

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hmoe.bench.disk import measure_disk
from hmoe.config import recipes
from hmoe.config.memory import choose_unset, count_memory, read_host
from hmoe.config.offload import count_traffic_of_offload

HMOE = [sys.executable, "-m", "hmoe"]
QUIET = ("train.eval_sequences=1", "train.sample_every=0", "train.save_every=1000000")
GROUPS = Path("/sys/fs/cgroup")


def make_group(limit_bytes: int) -> Path:
    """Return a control group whose processes may take so much memory."""
    version_1 = GROUPS / "memory"
    group = (version_1 if version_1.is_dir() else GROUPS) / f"hmoe-offload-{os.getpid()}"
    group.mkdir()
    name = "memory.limit_in_bytes" if version_1.is_dir() else "memory.max"
    (group / name).write_text(str(limit_bytes))
    return group


def train(recipe: Sequence[str], folder: Path, group: Path | None) -> dict[str, Any]:
    """Train in a process of its own; return seconds of each step after the first, and what it took and told."""

    def join() -> None:
        assert group is not None
        (group / "cgroup.procs").write_text(str(os.getpid()))

    command = [*HMOE, "train", *recipe, *QUIET, "--run", str(folder)]
    begin: Callable[[], None] | None = join if group is not None else None
    with (folder.parent / f"{folder.name}.log").open("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, preexec_fn=begin)  # noqa: PLW1509
        anonymous = resident = 0
        while process.poll() is None:
            now = read_memory(process.pid)
            anonymous, resident = max(anonymous, now[0]), max(resident, now[1])
            time.sleep(0.02)
        log.seek(0)
        told = log.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: {process.returncode}\n{told[-2000:]}")
    rows = [json.loads(line) for line in (folder / "timing.jsonl").read_text().splitlines()]
    seconds = [later["seconds"] - before["seconds"] for before, later in itertools.pairwise(rows)]
    newest = max((folder / "checkpoints").glob("step-*"))
    weights = json.loads((newest / "MANIFEST.json").read_text())["files"]["model.safetensors"]["sha256"]
    return {
        "seconds": seconds,
        "anonymous": anonymous,
        "resident": resident,
        "told": told,
        "weights": weights,
    }


def read_memory(pid: int) -> tuple[int, int]:
    """Return the anonymous and all resident memory of a process."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0, 0
    sizes = {
        name: int(size) << 10
        for name, size in re.findall(r"^(Rss\w+|VmRSS):\s+(\d+) kB", lines, re.MULTILINE)
    }
    return sizes.get("RssAnon", 0) + sizes.get("RssShmem", 0), sizes.get("VmRSS", 0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="+")
    parser.add_argument("--offload", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--limit-gb", type=float)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    recipe = [*options.recipe, f"train.steps={options.steps}"]
    elsewhere = [*recipe, "parallel.offload=disk", *options.offload]
    config = choose_unset(recipes.read_recipe(elsewhere[0], elsewhere[1:])[1], read_host())
    planned, traffic = count_memory(config, "cpu"), count_traffic_of_offload(config)
    group = None if options.limit_gb is None else make_group(round(options.limit_gb * 1e9))
    results: dict[str, list[dict[str, Any]]] = {"memory": [], "disk": []}
    rates = []
    with tempfile.TemporaryDirectory(dir=".") as scratch:
        for turn in range(options.rounds):
            rates.append(measure_disk(Path(scratch)))
            results["memory"].append(train(recipe, Path(scratch) / f"memory-{turn}", None))
            results["disk"].append(train(elsewhere, Path(scratch) / f"disk-{turn}", group))
        nothing = train(["tiny", "train.steps=1", "model.layers=1"], Path(scratch) / "nothing", None)
    if group is not None:
        group.rmdir()
    weights = {result["weights"] for runs in results.values() for result in runs}
    seconds = {
        name: statistics.median(s for result in runs for s in result["seconds"])
        for name, runs in results.items()
    }
    disk = {name: statistics.median(getattr(rate, name) for rate in rates) for name in ("read", "write")}
    transfer = traffic.read / disk["read"] + traffic.written / disk["write"]
    taken = max(result["anonymous"] for result in results["disk"]) - nothing["anonymous"]
    figures = {
        "recipe": options.recipe,
        "offload": options.offload,
        "limit_bytes": None if options.limit_gb is None else round(options.limit_gb * 1e9),
        "same_weights": len(weights) == 1,
        "step_seconds": seconds,
        "ratio": seconds["disk"] / seconds["memory"],
        "tokens_per_step": config.data.batch_tokens,
        "planned_read_bytes": traffic.read,
        "planned_written_bytes": traffic.written,
        "disk_bytes_per_second": disk,
        "transfer_seconds": transfer,
        "transfer_share_of_computing": transfer / seconds["memory"],
        "planned_memory_bytes": planned,
        "taken_memory_bytes": taken,
        "memory_ratio": taken / planned,
        "resident_bytes": {name: max(r["resident"] for r in runs) for name, runs in results.items()},
        "told": [line for line in results["disk"][-1]["told"].splitlines() if line.startswith("experts:")],
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }
    for name, value in figures.items():
        print(f"{name:28} {value}")
    if options.out is not None:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
