"""How many training steps per second does one checkout take, beside another? Steps in turn, medians of ratios.

    python benchmarks/step_speed.py OLD NEW [--preset tiny] [--threads 1] [--processes 1] [--steps 40]
                                    [--environment LD_PRELOAD=/path/to.so]

OLD and NEW are folders of the repository (`git worktree add ../old COMMIT`). Each computes in processes of its
own, which step in turn: one step of OLD, one of NEW, and again. Seconds are those of the processor (all threads
of a process) and of the clock; the first feels least of others that use the machine. With several processes all
of a checkout take their step at the same time, as in a sweep of one thread each.
"""

import argparse
import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

WARM = 4  # steps that are not counted


class Stepper:
    """A process that trains by the code of a checkout, one step for each line that it is sent."""

    def __init__(self, checkout: Path, preset: str, threads: int, variables: Mapping[str, str]) -> None:
        command = [sys.executable, __file__, "--work", preset, "--threads", str(threads)]
        environment = os.environ | {"PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": str(threads)}
        environment |= variables
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def begin_step(self) -> None:
        """Let it take a step."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def read_seconds(self) -> tuple[float, float]:
        """Return the seconds of the processor and of the clock that the step took."""
        assert self.process.stdout is not None
        processor, clock = self.process.stdout.readline().split()
        return float(processor), float(clock)

    def end(self) -> None:
        """Let the process end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def take_step(steppers: list[Stepper]) -> tuple[float, float]:
    """Let all take a step at the same time; return the mean of their processor seconds, and the longest clock."""
    for stepper in steppers:
        stepper.begin_step()
    seconds = [stepper.read_seconds() for stepper in steppers]
    return sum(processor for processor, _ in seconds) / len(seconds), max(clock for _, clock in seconds)


def answer_steps(preset: str, threads: int) -> None:
    """Train by the code that PYTHONPATH names; a step for each line of the input, its seconds a line of output."""
    import torch

    from hmoe.bench import step as bench

    torch.set_num_threads(threads)
    make: Any = bench.Training
    if "precision" in inspect.signature(make).parameters:  # until November 2026
        training = make(preset, "float32")
    else:
        recipe = bench.load_recipe(preset, ["data.micro_batches=1"], "float32", "cpu")[1]
        training = make(recipe, "cpu")
    for _ in sys.stdin:
        begin = time.process_time(), time.perf_counter()
        training()
        print(time.process_time() - begin[0], time.perf_counter() - begin[1], flush=True)


def compare_checkouts(checkouts: dict[str, Path], options: argparse.Namespace) -> dict[str, object]:
    """Return steps per second of each checkout, all its processes together, and the median of the ratios."""
    variables = {"old": {}, "new": dict(word.split("=", 1) for word in options.environment)}
    steppers = {
        name: [
            Stepper(folder, options.preset, options.threads, variables[name])
            for _ in range(options.processes)
        ]
        for name, folder in checkouts.items()
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in steppers}
    for step in range(WARM + options.steps):
        for name, group in steppers.items():
            taken = take_step(group)
            if step >= WARM:
                seconds[name].append(taken)
    for group in steppers.values():
        for stepper in group:
            stepper.end()
    row: dict[str, object] = {
        key: getattr(options, key) for key in ("preset", "threads", "processes", "steps", "environment")
    }
    for place, kind in enumerate(("processor", "clock")):
        times = {name: [pair[place] for pair in pairs] for name, pairs in seconds.items()}
        row[f"{kind}_ms_per_step"] = {name: 1e3 * median(values) for name, values in times.items()}
        row[f"least_{kind}_ms_per_step"] = {name: 1e3 * min(values) for name, values in times.items()}
        row[f"{kind}_ratio"] = median(old / new for old, new in zip(times["old"], times["new"], strict=True))
    clock = row["clock_ms_per_step"]
    assert isinstance(clock, dict)
    row["steps_per_second"] = {name: 1e3 * options.processes / value for name, value in clock.items()}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkouts", type=Path, nargs="*", metavar="OLD NEW")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument(
        "--environment", action="append", default=[], metavar="NAME=VALUE", help="of NEW's processes only"
    )
    parser.add_argument("--out", type=Path, help="JSON file to which the row is added")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return answer_steps(options.work, options.threads)
    if len(options.checkouts) != 2:
        parser.error("two folders are compared: OLD NEW")
    row = compare_checkouts(dict(zip(("old", "new"), options.checkouts, strict=True)), options)
    print(json.dumps(row, indent=1))
    if options.out:
        add_row(options.out, row, options.checkouts)


def add_row(path: Path, row: dict[str, object], checkouts: list[Path]) -> None:
    """Add a row to the file of results; the file tells the machine and the commits."""
    from hmoe.bench.measure import describe_machine

    commits = [
        subprocess.check_output(["git", "-C", folder, "rev-parse", "--short", "HEAD"], text=True).strip()
        for folder in checkouts
    ]
    begun: dict[str, Any] = {
        "machine": describe_machine("cpu"),
        "date": datetime.now(UTC).date().isoformat(),
        "old": commits[0],
        "new": commits[1],
        "rows": [],
    }
    content = json.loads(path.read_text()) if path.exists() else begun
    content["rows"].append(row)
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
