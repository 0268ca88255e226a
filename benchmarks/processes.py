"""What do two processes that share a step cost, beside two that know nothing of each other? Steps in turn.

    python benchmarks/processes.py [--preset quickstart] [--tokens 8192] [--processes 2] [--steps 15]
                                   [--groups NAME ...] [--override KEY=VALUE ...] [--out FILE]

Each process has one thread. Independent processes train on tokens / processes a step, those that share the work on
all together, of which each computes as many: the first is what the machine can do at the same time. Groups of
processes step in turn, one after another, so that all feel the same disturbances; ratios are of neighbouring steps.

Where experts are placed it also tells how uneven the work was: by the pairs of all steps, by the seconds that each
process computed its experts, and as the placement predicts of a load that is alike for all.
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
    "experts placed": ("parallel.experts=expert_parallel",),
    "experts contiguous": ("parallel.experts=expert_parallel", "parallel.expert_placement=contiguous"),
    "experts placed, exact": ("parallel.experts=expert_parallel", "parallel.exact=true"),
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
            *GROUPS[name], *options.override,
        ]  # fmt: skip
        self.balance: list[dict[str, float]] = []
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
            assert worker.stdout is not None
            self.balance += [json.loads(line) for line in worker.stdout.read().splitlines()]
            worker.wait()


def answer_steps(store: str, words: list[str]) -> None:
    """Train on random tokens; a step for each line of the input, and a line of output after it."""
    import torch

    from hmoe.config import recipes
    from hmoe.data.batches import cut_batch
    from hmoe.model.transformer import build_transformer, set_backend, set_check_finite
    from hmoe.parallel.group import join_processes
    from hmoe.train.optimizer import build_optimizer
    from hmoe.train.processes import Processes, choose_process
    from hmoe.train.shared_run import build_shared_model, make_ranks
    from hmoe.train.step import train_step

    torch.set_num_threads(1)
    config = recipes.read_recipe(words[0], words[1:])[1]

    def step_on(processes: Processes, model: Any) -> None:
        set_check_finite(model, False)
        model.activation_checkpointing = config.train.recomputes_blocks
        if processes.exact:
            set_backend(model, "exact")
        watched = WatchedExperts(model)
        optimizer = build_optimizer(model, config.optim, processes.exact)
        shape = (2, config.data.batch_sequences, config.data.sequence_length)
        for step, _ in enumerate(sys.stdin):
            batch = torch.randint(0, config.model.vocab, shape, generator=torch.Generator().manual_seed(step))
            parts = cut_batch(*batch.unbind(0), config.data.num_micro_batches)
            own = parts[processes.rank :: processes.size]
            record = train_step(model, optimizer, own, config, step, processes)
            watched.count(record.num_pairs_ZE)
            print("done", flush=True)
        if watched.experts and processes.size > 1:
            balance = watched.measure(
                [sum(each) for each in processes.gather(torch.tensor([watched.seconds]))]
            )  # type: ignore[misc]
            if processes.rank == 0:
                print(json.dumps(balance), flush=True)

    if "RANK" not in os.environ:
        step_on(choose_process(config.parallel.exact), build_transformer(config.model, config.seed))
        return
    with join_processes(60.0, store) as messages:
        ranks = make_ranks(config, "cpu", messages, int(os.environ["WORLD_SIZE"]))
        step_on(ranks, build_shared_model(config, ranks, torch.float32))


class WatchedExperts:
    """What the placed experts of a model have to do, and how long this process computes its own."""

    def __init__(self, model: Any) -> None:
        from hmoe.parallel.expert_parallel import list_dispatched

        self.experts, self.seconds = list(list_dispatched(model)), 0.0
        self.num_pairs: list[list[int]] = []
        for experts in self.experts:
            self._watch(experts.local)

    def _watch(self, rows: Any) -> None:
        forward = rows.forward

        def time_forward(*arguments: Any) -> Any:
            begin = time.perf_counter()
            result = forward(*arguments)
            self.seconds += time.perf_counter() - begin
            return result

        rows.forward = time_forward

    def count(self, num_pairs_ZE: list[list[int]]) -> None:
        """Take in the pairs of a step."""
        before = self.num_pairs or [[0] * len(row) for row in num_pairs_ZE]
        self.num_pairs = [
            [a + b for a, b in zip(*rows, strict=True)] for rows in zip(before, num_pairs_ZE, strict=True)
        ]

    def measure(self, seconds: list[float]) -> dict[str, float]:
        """Return the most of a process divided by the mean: predicted, by pairs, and by the seconds of each."""
        from hmoe.specs.placement import list_work

        size = len(seconds)
        alike = [list_work(e.placement, [1.0] * len(e.placement.widths)) for e in self.experts]
        real = [list_work(e.placement, row) for e, row in zip(self.experts, self.num_pairs, strict=True)]
        predicted, counted = (
            [sum(each) / len(self.experts) for each in zip(*rows, strict=True)] for rows in (alike, real)
        )
        return {
            "predicted": size * max(predicted),
            "by_pairs": size * max(counted),
            "by_seconds": size * max(float(each) for each in seconds) / float(sum(seconds)),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="quickstart")
    parser.add_argument("--tokens", type=int, default=8192, help="of a shared step")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--override", nargs="*", default=[], metavar="KEY=VALUE", help="of the preset")
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
    write_rows(options, seconds, {name: group.balance for name, group in groups.items()})


def write_rows(
    options: argparse.Namespace, seconds: dict[str, list[float]], balance: dict[str, list[dict[str, float]]]
) -> None:
    """Print each group's median seconds, and its speed beside processes that are alone."""
    from hmoe.bench.measure import describe_machine

    rows = []
    for name, values in seconds.items():
        alone = seconds["alone, 4 parts" if "4 parts" in name else "alone"]
        ratio = median(first / second for first, second in zip(alone, values, strict=True))
        own = balance[name][0] if balance[name] else {}
        rows.append({"group": name, "seconds": median(values), "speed_beside_alone": ratio, **own})
        words = ", ".join(f"{key} {value:.3f}" for key, value in own.items())
        print(f"{name:24s} {median(values):7.3f} s {ratio:6.3f} of two alone  {words}")
    if options.out:
        settings = {
            key: getattr(options, key) for key in ("preset", "tokens", "processes", "steps", "override")
        }
        machine = describe_machine("cpu") | {"threads": 1}
        options.out.write_text(json.dumps({"machine": machine, **settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
