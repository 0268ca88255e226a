"""Compiles kernels in many processes into Triton's cache folder, before anything is timed.

python -m benchmarks.gpu.compiling PART OF        the PART-th of so many parts of what stdin lists as JSON
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from benchmarks.gpu.facts import ROOT
from benchmarks.gpu.setting import Outcome, Setting
from benchmarks.gpu.shapes import list_candidates
from hmoe.kernels.ragged.launch import KERNELS
from hmoe.kernels.ragged.shapes import LAUNCHES, TileShape

INTEGERS, FLOATS = ("token_N", "plan"), ("gate_N", "partial")
KEPT = {"up": {"KEEP": True}}  # flags that a launch is given in addition to its own


class Task(NamedTuple):
    """One kernel to compile."""

    launch: str
    dtype: str
    dim: int
    padded: int
    shape: Sequence[int]


def list_tasks(dtype: str, dim: int, experts: int, most: int | None = None) -> Iterator[Task]:
    """Yield a task per launch and candidate shape, at most `most` of each launch, for a layer's sizes."""
    padded = max(2, 1 << (experts - 1).bit_length())
    for launch in LAUNCHES:
        for shape in list_candidates(launch, getattr(torch, dtype))[:most]:
            yield Task(launch, dtype, dim, padded, shape)


def compile_one(task: Task) -> None:
    """Compile one kernel as a launch would, into the same cache."""
    function, flags = KERNELS[task.launch]
    options = TileShape(*task.shape).options
    constants = {
        "D": task.dim,
        "PADDED": task.padded,
        "UPCAST": False,
        **flags,
        **KEPT.get(task.launch, {}),
        **options,
    }
    types = {
        **dict.fromkeys(INTEGERS, torch.int64),
        **dict.fromkeys(FLOATS, torch.float32),
        "num_pairs": 64,
    }
    arguments = [
        types.get(name, getattr(torch, task.dtype)) for name in function.arg_names if name not in constants
    ]
    function.warmup(*arguments, grid=(1,), **constants)


def compile_all(setting: Setting, wanted: Sequence[Task]) -> Outcome:
    """Compile in as many processes as there are cores, less two."""
    if setting.dry:
        return f"{len(wanted)} kernels are interpreted", len(wanted)
    count, start = max(1, (os.cpu_count() or 4) - 2), time.monotonic()
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.compiling", str(part), str(count)], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for part in range(count)
    ]  # fmt: skip
    text, failures, done = json.dumps(wanted), [], 0
    for worker in workers:
        # The list is longer than a pipe holds, so all must be reading before one is waited for.
        assert worker.stdin is not None
        worker.stdin.write(text)
        worker.stdin.close()
        worker.stdin = None
    for worker in workers:
        try:
            out, error = worker.communicate(timeout=max(setting.left - 2, 1))
        except subprocess.TimeoutExpired:
            worker.kill()
            out, error = worker.communicate()
        lines = [json.loads(line) for line in out.splitlines()]
        done += sum(not line["error"] for line in lines)
        failures += [line for line in lines if line["error"]] + (
            [{"error": error[-600:]}] if worker.returncode else []
        )
    shown = f"; {len(failures)} failures, first: {str(failures[0])[:300]}" if failures else ""
    return (
        f"{done} of {len(wanted)} kernels in {time.monotonic() - start:.0f} s, {count} processes{shown}",
        failures,
    )


def main() -> None:
    part, count = map(int, sys.argv[1:])
    for fields in json.load(sys.stdin)[part::count]:
        error = ""
        try:
            compile_one(Task(*fields))
        except Exception as problem:
            error = f"{type(problem).__name__}: {' '.join(str(problem).split())[:400]}"
        print(json.dumps({"task": fields, "error": error}), flush=True)


if __name__ == "__main__":
    main()
