"""What do two processes that share a step cost, beside two that know nothing of each other? Steps in turn.

    python benchmarks/processes.py [--preset quickstart] [--tokens 8192] [--processes 2] [--steps 15]
                                   [--groups NAME ...] [--out FILE]

Each process has one thread. Independent processes train on tokens / processes a step, those that share the work on
all together, of which each computes as many: the first is what the machine can do at the same time. Groups of
processes step in turn, one after another, so that all feel the same disturbances; ratios are of neighbouring steps.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

GROUPS = {
    "alone": (),
    "ddp": ("parallel.shard=ddp",),
    "zero2": ("parallel.shard=zero2",),
    "zero3": ("parallel.shard=zero3",),
    "zero2, exact": ("parallel.shard=zero2", "parallel.exact=true"),
    "alone, exact": ("parallel.exact=true",),
    "alone, 4 parts": (),
    "zero2, 4 parts": ("parallel.shard=zero2",),
    "zero2, 4 parts, exact": ("parallel.shard=zero2", "parallel.exact=true"),
}
WARM = 3  # steps that are not counted


class Group:
    """Processes that take a step at the same time, one for each line that they are sent."""

    def __init__(self, name: str, options: argparse.Namespace, folder: Path) -> None:
        shares, size = not name.startswith("alone"), options.processes
        parts = 4 if "4 parts" in name else size
        tokens = options.tokens if shares else options.tokens // size
        words = [
            options.preset, f"data.batch_tokens={tokens}", f"data.micro_batches={parts if shares else parts // size}",
            *GROUPS[name],
        ]  # fmt: skip
        self.workers = []
        for rank in range(size):
            places = {"RANK": rank, "WORLD_SIZE": size} if shares else {}
            command = [sys.executable, __file__, "--work", str(folder / name), *words]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            environment |= {key: str(value) for key, value in places.items()}
            self.workers.append(
                subprocess.Popen(
                    command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )

    def take_step(self) -> float:
        """Take a step, and return the seconds until the last process has taken it."""
        begin = time.perf_counter()
        for worker in self.workers:
            assert worker.stdin is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
        for worker in self.workers:
            assert worker.stdout is not None
            if not worker.stdout.readline():
                raise SystemExit("a process ended")
        return time.perf_counter() - begin

    def end(self) -> None:
        """Let the processes end."""
        for worker in self.workers:  # all, before one is waited for: they leave together
            assert worker.stdin is not None
            worker.stdin.close()
        for worker in self.workers:
            worker.wait()


def answer_steps(store: str, words: list[str]) -> None:
    """Train on random tokens; a step for each line of the input, and a line of output after it."""
    import torch

    from hmoe.config import recipes
    from hmoe.data.batches import cut_batch
    from hmoe.model.transformer import build_transformer, set_check_finite
    from hmoe.parallel.group import join_processes
    from hmoe.train.optimizer import build_optimizer
    from hmoe.train.processes import Processes, choose_process
    from hmoe.train.shared_run import build_shared_model, make_ranks
    from hmoe.train.step import train_step

    torch.set_num_threads(1)
    config = recipes.read_recipe(words[0], words[1:])[1]

    def step_on(processes: Processes, model: Any) -> None:
        set_check_finite(model, False)
        optimizer = build_optimizer(model, config.optim, processes.exact)
        shape = (2, config.data.batch_sequences, config.data.sequence_length)
        for step, _ in enumerate(sys.stdin):
            batch = torch.randint(0, config.model.vocab, shape, generator=torch.Generator().manual_seed(step))
            parts = cut_batch(*batch.unbind(0), config.data.num_micro_batches)
            train_step(model, optimizer, parts[processes.rank :: processes.size], config, step, processes)
            print("done", flush=True)

    if "RANK" not in os.environ:
        step_on(choose_process(config.parallel.exact), build_transformer(config.model, config.seed))
        return
    with join_processes(60.0, store) as messages:
        ranks = make_ranks(config, "cpu", messages, int(os.environ["WORLD_SIZE"]))
        step_on(ranks, build_shared_model(config, ranks, torch.float32))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="quickstart")
    parser.add_argument("--tokens", type=int, default=8192, help="of a shared step")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS), help="default: all")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--work", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return answer_steps(options.work[0], options.work[1:])
    if "alone" not in options.groups or (
        "alone, 4 parts" not in options.groups and "4 parts" in str(options.groups)
    ):
        parser.error("ratios are to groups that are alone: name these too")
    seconds: dict[str, list[float]] = {name: [] for name in options.groups}
    with tempfile.TemporaryDirectory() as folder:
        groups = {name: Group(name, options, Path(folder)) for name in options.groups}
        for step in range(WARM + options.steps):
            for name, group in groups.items():
                taken = group.take_step()
                if step >= WARM:
                    seconds[name].append(taken)
        for group in groups.values():
            group.end()
    write_rows(options, seconds)


def write_rows(options: argparse.Namespace, seconds: dict[str, list[float]]) -> None:
    """Print each group's median seconds, and its speed beside processes that are alone."""
    from hmoe.bench.measure import describe_machine

    rows = []
    for name, values in seconds.items():
        alone = seconds["alone, 4 parts" if "4 parts" in name else "alone"]
        ratio = median(first / second for first, second in zip(alone, values, strict=True))
        rows.append({"group": name, "seconds": median(values), "speed_beside_alone": ratio})
        print(f"{name:24s} {median(values):7.3f} s {ratio:6.3f} of two alone")
    if options.out:
        settings = {key: getattr(options, key) for key in ("preset", "tokens", "processes", "steps")}
        machine = describe_machine("cpu") | {"threads": 1}
        options.out.write_text(json.dumps({"machine": machine, **settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
