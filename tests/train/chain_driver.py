"""Trains a run by changing numbers of processes, kills it on the way, and compares its end with an unbroken run's.

    python -m tests.train.chain_driver chains FOLDER NUMBER [SEED]
    python -m tests.train.chain_driver points FOLDER EVERY

Each of the chains goes on with other processes at every stage, by 1-2-4-2-1 or at random; a stage ends at a step of its
own, or by SIGKILL of one or all processes at a random time. `points` kills one of two processes at its n-th file-system
call (every EVERY-th of them), then goes on with two, with one or with four. All processes are forked from one warm
process, which is seconds instead of minutes. Prints how many ended with other bits than the run that one process
trained without a break.
"""

import atexit
import contextlib
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch

from hmoe.checkpoint import shared_save
from hmoe.checkpoint.manifest import list_checkpoint_steps, locate_checkpoint, read_state
from hmoe.checkpoint.state import digest_shared_state
from hmoe.checkpoint.store import load_newest_checkpoint
from hmoe.config import recipes
from hmoe.data.corpus import open_corpus
from hmoe.errors import HMoEError
from hmoe.parallel.group import join_processes
from hmoe.runs.run_folder import RunFolder
from hmoe.train.console import Console, SilentDisplay
from hmoe.train.loop import train_run
from hmoe.train.shared_run import make_ranks
from tests.conftest import tiny
from tests.train.helpers import rows
from tests.train.kill_driver import count_calls

OVERRIDES = [
    *tiny("tiny"),
    "data.batch_tokens=256",
    "data.micro_batches=4",
    "model.vocab=307",
    "model.moe.widths=[5, 29, 11, 7, 2, 3]",
    "model.moe.router={name: top_k, k: 2, bias_rate: 0.01, jitter: 0.1}",
    "train.steps=24",
    "train.save_every=2",
    "train.keep=3",
    "train.eval_every=6",
    "train.sample_every=0",
    "parallel.exact=true",
]
STAGES = (1, 2, 4, 2, 1)
LONGEST_SECONDS = 1.5  # until a kill


seen = {"hidden": 0}  # kills that left a checkpoint half done


def train(
    folder: Path, size: int, rank: int, store: Path, overrides: Sequence[str], limits: Mapping[int, int]
) -> None:
    """Be one of the processes of a run, or train alone; die at the file-system call that `limits` has for this rank."""
    torch.set_num_threads(1)
    write = shared_save.write_pieces
    # Slower than a step, so that training is ahead of what is being saved.
    shared_save.write_pieces = lambda *words: (time.sleep(random.uniform(0, 0.06)), write(*words))[1]
    if rank in limits:
        count = count_calls(limits[rank])
        atexit.register(lambda: folder.with_name(f"calls-{rank}").write_text(str(count())))
    config = recipes.read_recipe("tiny", [*OVERRIDES, *overrides])[1]
    if size == 1:
        with RunFolder(folder, config) as opened:
            train_run(config, opened, Console(SilentDisplay()))
        return
    places = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
    os.environ.update({name: str(value) for name, value in places.items()})
    with (
        join_processes(20.0, str(store)) as messages,
        RunFolder(folder, config, writes=rank == 0) as opened,
    ):
        train_run(config, opened, Console(SilentDisplay()), make_ranks(config, "cpu", messages, size))


def start(
    folder: Path, size: int, overrides: Sequence[str], limits: Mapping[int, int] = MappingProxyType({})
) -> list[int]:
    """Fork the processes of a stage, and return their ids."""
    store = folder.with_name(f"{folder.name}.store")
    store.unlink(missing_ok=True)
    pids = []
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            code = 1
            with contextlib.suppress(HMoEError):
                train(folder, size, rank, store, overrides, limits)
                code = 0
            atexit._run_exitfuncs()
            os._exit(code)
        pids.append(pid)
    return pids


def wait(pids: Sequence[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def run_chain(folder: Path, stages: Sequence[tuple[int, str, float]]) -> None:
    """Go through stages of (processes, sharding, seconds until a kill or 0); the last one trains to the end."""
    for number, (size, shard, seconds) in enumerate(stages, 1):
        last = number == len(stages)
        step = 24 if last else 24 * number // len(stages)
        pids = start(folder, size, [f"parallel.shard={shard}", f"train.steps={step}"])
        if seconds and not last:
            time.sleep(seconds)
            # One of them: the others notice, or are killed as a launcher would.
            for pid in random.sample(pids, random.choice((1, size))):
                os.kill(pid, signal.SIGKILL)
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            wait(pids)
            seen["hidden"] += any((folder / "checkpoints").glob(".step-*"))
        elif any(wait(pids)):
            raise SystemExit(f"stage {number} of {folder} failed: {size} processes, {shard}")


def describe_end(folder: Path) -> tuple[str, str]:
    """Return what identifies the end of a run: the digest of its state, and its metrics."""
    newest = load_newest_checkpoint(folder, quarantine=False, say=print)
    assert newest is not None
    for step in list_checkpoint_steps(folder):
        assert read_state(locate_checkpoint(folder, step))["counts"]["step"] == step, step
    kept = [
        # A stage ends with a validation, which an unbroken run has no reason for.
        {key: value for key, value in row.items() if not key.startswith("validation") or row["step"] % 6 == 0}
        for row in rows(folder)
    ]
    return digest_shared_state(newest), repr(kept)


def draw_stages(index: int) -> list[tuple[int, str, float]]:
    """Return the stages of a chain: 1-2-4-2-1 without kills, with them, then random ones."""
    sizes = STAGES if index % 3 < 2 else random.choices((1, 2, 4), k=random.randint(3, 6))
    return [
        (
            size,
            random.choice(("zero2", "zero3")) if size > 1 else "none",
            0.0 if index % 3 == 0 else random.uniform(0.2, LONGEST_SECONDS),
        )
        for size in sizes
    ]


def run_chains(base: Path, number: int) -> tuple[int, int]:
    """Return how many chains were run, and how many ended otherwise than the unbroken run."""
    expected, different = describe_end(base / "whole"), 0
    for index in range(number):
        stages = draw_stages(index)
        run_chain(base / "chain", stages)
        same = describe_end(base / "chain") == expected
        different += not same
        shown = "-".join(f"{size}{'x' if seconds else ''}" for size, _, seconds in stages)
        print(f"chain {index + 1}: {shown}: {'same' if same else 'DIFFERENT'}", flush=True)
        shutil.rmtree(base / "chain")
    return number, different


def run_points(base: Path, every: int) -> tuple[int, int]:
    """Return how many kills of one of two processes there were, and how many runs then ended otherwise."""
    folder, few = base / "chain", ["train.steps=8"]
    assert wait(start(base / "short", 1, few)) == [0]
    assert wait(start(folder, 2, few, {0: 0, 1: 0})) == [0, 0]
    expected, kills, different = describe_end(base / "short"), 0, 0
    assert describe_end(folder) == expected
    shutil.rmtree(folder)
    for rank in (0, 1):
        calls = int((base / f"calls-{rank}").read_text())
        for limit in range(1, calls + 1, every):
            pids = start(folder, 2, few, {rank: limit})
            assert os.waitstatus_to_exitcode(os.waitpid(pids[rank], 0)[1]) == -signal.SIGKILL
            with contextlib.suppress(ProcessLookupError):
                os.kill(pids[1 - rank], signal.SIGKILL)  # as a launcher does
            wait([pids[1 - rank]])
            kills += 1
            assert not any(wait(start(folder, (1, 2, 4)[kills % 3], few))), (rank, limit)
            leftovers = [path for path in (folder / "checkpoints").iterdir() if path.name.startswith(".")]
            if describe_end(folder) != expected or leftovers:
                print(f"process {rank}, call {limit}: other bits, or left: {leftovers}", flush=True)
                different += 1
            shutil.rmtree(folder)
    return kills, different


def main() -> None:
    mode, base, amount = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    random.seed(int(sys.argv[4]) if len(sys.argv) > 4 else 0)
    torch.set_num_threads(1)
    open_corpus("bytes")
    base.mkdir(parents=True, exist_ok=True)
    if mode == "chains":
        assert wait(start(base / "whole", 1, [])) == [0]
        ends, different = run_chains(base, amount)
        print(f"{seen['hidden']} kills while a checkpoint was being written")
        print(f"{ends - different} of {ends} chains ended with the bits of the unbroken run")
    else:
        ends, different = run_points(base, amount)
        print(f"{ends} kills at file-system calls, {different} runs with other bits or leftovers")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
