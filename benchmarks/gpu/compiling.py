"""Compiles kernels in many processes into Triton's cache folder, before anything is timed: a second or two each on one core.

python -m benchmarks.gpu.compiling NUMBER OF        the NUMBER-th part of what stdin lists as JSON
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
from benchmarks.gpu.setting import Found, Setting
from benchmarks.gpu.shapes import candidates
from hmoe.kernels.ragged.launch import KERNELS
from hmoe.kernels.ragged.shapes import LAUNCHES, TileShape

INTEGERS, FLOATS = ("token_N", "plan"), ("gate_N", "partial")
KEPT = {"up": {"KEEP": True}}  # what a launch is told beside its own flags


class Task(NamedTuple):
    """One kernel to compile."""

    launch: str
    dtype: str
    dim: int
    padded: int
    shape: Sequence[int]


def tasks(dtype: str, dim: int, experts: int, most: int | None = None) -> Iterator[Task]:
    """The candidates, at most so many, of all launches for a model width and number of experts."""
    padded = max(2, 1 << (experts - 1).bit_length())
    for launch in LAUNCHES:
        for shape in candidates(launch, getattr(torch, dtype))[:most]:
            yield Task(launch, dtype, dim, padded, shape)


def compile_one(task: Task) -> None:
    """As a launch would, into the same cache."""
    function, flags = KERNELS[task.launch]
    options = TileShape(*task.shape).options
    constants = {"D": task.dim, "PADDED": task.padded, "UPCAST": False, **flags, **KEPT.get(task.launch, {}), **options}
    types = {
        **dict.fromkeys(INTEGERS, torch.int64),
        **dict.fromkeys(FLOATS, torch.float32),
        "num_pairs": 64,
    }
    arguments = [types.get(name, getattr(torch, task.dtype)) for name in function.arg_names if name not in constants]
    function.warmup(*arguments, grid=(1,), **constants)


def compile_all(setting: Setting, wanted: Sequence[Task]) -> Found:
    """In as many processes as there are cores, less two."""
    if setting.dry:
        return f"{len(wanted)} kernels are interpreted", len(wanted)
    count, start = max(1, (os.cpu_count() or 4) - 2), time.monotonic()
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.compiling", str(number), str(count)], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for number in range(count)
    ]  # fmt: skip
    text, failures, done = json.dumps(wanted), [], 0
    for worker in workers:  # the list is longer than a pipe holds, so all must be reading before one is waited for
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
        failures += [line for line in lines if line["error"]] + ([{"error": error[-600:]}] if worker.returncode else [])
    shown = f"; {len(failures)} failures, first: {str(failures[0])[:300]}" if failures else ""
    return f"{done} of {len(wanted)} kernels in {time.monotonic() - start:.0f} s, {count} processes{shown}", failures


def main() -> None:
    number, count = map(int, sys.argv[1:])
    for fields in json.load(sys.stdin)[number::count]:
        error = ""
        try:
            compile_one(Task(*fields))
        except Exception as problem:
            error = f"{type(problem).__name__}: {' '.join(str(problem).split())[:400]}"
        print(json.dumps({"task": fields, "error": error}), flush=True)


if __name__ == "__main__":
    main()
