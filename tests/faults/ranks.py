"""R7 to R9: faults of one process of several, copies that drift apart, and changing numbers of processes."""

import hashlib
import json
import math
import random
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from hmoe.checkpoint.manifest import list_checkpoint_steps
from hmoe.checkpoint.store import load_newest_checkpoint
from hmoe.errors import DistributedError
from hmoe.parallel.kept_rows import list_kept_rows
from hmoe.train import loop
from tests.faults.campaign import Case, FaultTest, NotPossibleError, check
from tests.faults.kills import SAME, prepare_work, read_expected
from tests.faults.works import SHARED, Attempt, Work, check_end, finish, make_shared_run
from tests.train import chain_driver, fault_driver
from tests.train.helpers import one_thread, rows

# R7: hmoe train --processes 2, a fault in one of them.


def prepare_faults(base: Path) -> None:
    words = [sys.executable, "-m", "hmoe", *fault_driver.call_words(base / "whole", "")]
    subprocess.run(words, check=True, env=one_thread(), stdout=subprocess.DEVNULL)
    expected = [fault_driver.measure(base / "whole", placed) for placed in (False, True)]
    (base / "expected.json").write_text(json.dumps(expected))


def meet_fault(case: Case) -> int:
    fault, rank, moment = fault_driver.CASES[case.number]
    if not fault_driver.is_possible(fault):
        raise NotPossibleError(f"{fault} cannot be planted on this machine")
    folder = case.folder / f"{fault}-{rank}-{moment}"
    problem, _ = fault_driver.run_case(folder, fault, rank, moment, 1000 * case.seed + case.number)
    check(not problem, f"{fault} of process {rank}, {moment}: {problem}")
    placed = moment == "exchange"
    expected = json.loads((case.base / "expected.json").read_text())[placed]
    check(
        fault_driver.measure(folder, placed) == expected, f"{fault} of process {rank}, {moment}: other bits"
    )
    return 1


# R8: one bit of a copy flips in memory.

FLIP = "train.save_every=3"
SHARED_BY = {
    "ddp": make_shared_run(2, "parallel.shard=ddp", "parallel.exact=false", FLIP),
    "replicas": make_shared_run(
        4, "parallel.shard=zero2", "parallel.replicas=2", "parallel.exact=false", FLIP
    ),
    "zero2": make_shared_run(2, "parallel.shard=zero2", FLIP),  # the router's bias alone has copies
}


def flip_bit(session: loop.Session, rng: random.Random) -> str:
    """Flip one bit of a weight or moment that other processes hold, too; return its name."""
    places = [
        kept for kept in list_kept_rows(session.model)
        if not isinstance(kept.parameter, DTensor) or any(place.is_replicate() for place in kept.parameter.placements)
    ]  # fmt: skip
    kept = rng.choice(places)
    tensors = {"": kept.parameter.detach()}
    tensors |= {f".{name}": value for name, value in session.optimizer.state.get(kept.parameter, {}).items()}
    name, tensor = rng.choice([(name, value) for name, value in tensors.items() if value.ndim])
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    bits = local.view(torch.int32).view(-1)
    bits[rng.randrange(len(bits))] ^= 1 << rng.randrange(22)  # most are too small for a loss to tell
    return kept.name + name


def flipping(process: Callable[[Path], None], step: int, rng: random.Random) -> Callable[[Path], None]:
    def be(folder: Path) -> None:
        take = loop._take_step

        def take_and_flip(session: loop.Session, parts: Sequence[object]) -> object:
            record = take(session, parts)  # type: ignore[arg-type]
            if session.counts.step == step:
                print("flipped", flip_bit(session, rng), flush=True)
            return record

        loop._take_step = take_and_flip  # type: ignore[assignment]
        process(folder)

    return be


def let_copies_drift(case: Case) -> int:
    """Flip a bit in one process; all must stop with exit code 6 before they save, and go on from what was saved."""
    rng = case.draw()
    name = list(SHARED_BY)[case.number % len(SHARED_BY)]
    work, step, folder = SHARED_BY[name], rng.randrange(1, 8), case.folder / "run"
    rank = rng.randrange(len(work.processes))
    processes = list(work.processes)
    processes[rank] = flipping(processes[rank], step, rng)
    attempt = Attempt(Work(processes, work.measure), folder)
    attempt.go()
    codes = attempt.wait()
    expected, told = read_expected(case.base / name)[0], (case.folder / "output.txt").read_text()
    check("flipped" in told, f"{name}, process {rank}, step {step}: no bit was flipped")
    if set(codes) == {0}:  # what was added since has rounded the bit away
        check(work.measure(folder) == expected, f"{name}, step {step}: saves what differs")
        return 0
    check(
        set(codes) == {DistributedError.exit_code}, f"{name}, process {rank}, step {step}: ends with {codes}"
    )
    check(max(list_checkpoint_steps(folder), default=0) <= step, "what differs was saved")
    # A moment may have reached its weight by then, which is named first.
    flipped = re.search(r"flipped (\S+?)(\.exp_avg\S*)?\s", told)
    check(flipped and f": {flipped[1]}" in told, f"does not name the tensor: {told[-300:]}")
    check(re.search(r"process \d holds .*process \d", told), f"does not name the processes: {told[-300:]}")
    check_end(work, folder, expected)
    return 1


def prepare_copies(base: Path) -> None:
    for name, work in SHARED_BY.items():
        (base / name).mkdir()
        prepare_work(work, base / name)


# R10: the numbers of one process are not finite.


def spoiling(process: Callable[[Path], None], step: int, value: float) -> Callable[[Path], None]:
    def be(folder: Path) -> None:
        backward = torch.Tensor.backward
        take, now = loop._take_step, {"spoils": False}

        def take_spoiled(session: loop.Session, parts: Sequence[object]) -> object:
            now["spoils"] = session.counts.step == step
            return take(session, parts)  # type: ignore[arg-type]

        def spoil(loss: torch.Tensor, *more: Any, **options: Any) -> None:
            backward(loss * value if now["spoils"] else loss, *more, **options)

        loop._take_step, torch.Tensor.backward = take_spoiled, spoil  # type: ignore[assignment]
        process(folder)

    return be


def spoil_one_process(case: Case) -> int:
    """Spoil the gradients of one of two processes in a step: both skip it, with the bits of a run where both had it."""
    rng = case.draw()
    step, value = rng.randrange(1, 8), (math.nan, math.inf, -math.inf)[case.number % 3]
    ends = []
    for name, spoiled in (("first", (0,)), ("second", (1,)), ("both", (0, 1))):
        processes = [
            spoiling(process, step, value) if rank in spoiled else process
            for rank, process in enumerate(SHARED.processes)
        ]
        work = Work(processes, measure_weights)
        finish(work, case.folder / name)
        skipped = [row["skipped"] for row in rows(case.folder / name)]
        check(
            skipped == [int(number > step) for number in range(1, 9)],
            f"{value} in {name}, step {step}: {skipped}",
        )
        ends.append(work.measure(case.folder / name))
    check(len(set(ends)) == 1, f"{value} in step {step}: other bits where the other process has it")
    return 2


def measure_weights(folder: Path) -> str:
    """SHA-256 of what the newest checkpoint holds in tensors: the log tells the losses, which differ."""
    newest = load_newest_checkpoint(folder, quarantine=False, say=print)
    assert newest is not None
    digest = hashlib.sha256()
    for part in (newest.model, newest.optimizer):
        for name in sorted(part):
            digest.update(name.encode() + part[name].numpy().tobytes())
    return digest.hexdigest()


# R9: 1, 2 and 4 processes by turns.


def prepare_chain(base: Path) -> None:
    check(chain_driver.wait(chain_driver.start(base / "whole", 1, [])) == [0], "an undisturbed run fails")
    (base / "expected.json").write_text(json.dumps(chain_driver.describe_end(base / "whole")))


def run_chain(case: Case) -> int:
    random.seed(f"{case.seed}:{case.number}")  # the driver's own draws
    stages = chain_driver.draw_stages(case.number)
    chain_driver.run_chain(case.folder / "chain", stages)
    same = (
        json.dumps(chain_driver.describe_end(case.folder / "chain"))
        == (case.base / "expected.json").read_text()
    )
    check(same, f"{stages}: ends with other bits")
    return 1


def refuse_processes(case: Case) -> int:
    """A number of processes that cannot share the micro-batches is refused in one line."""
    words = [
        "train",
        "tiny",
        "--run",
        str(case.folder / "run"),
        "--processes",
        str((3, 5, 7)[case.number % 3]),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "hmoe", *words, *chain_driver.OVERRIDES],
        env=one_thread(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    check(done.returncode == 2, f"{words[-1]} processes for 4 micro-batches: exit code {done.returncode}")
    check("Traceback" not in done.stderr and "micro" in done.stderr, f"says {done.stderr[-300:]}")
    check(not (case.folder / "run" / "checkpoints").exists(), "begins all the same")
    return 1


TESTS = (
    FaultTest(
        "R7", "one process is killed, stops, raises, exits, segfaults, hangs, is slow, has no memory, disk or network",
        "the job ends with the same bits, or names process and cause and goes on later; nothing is left",
        "faults", meet_fault, len(fault_driver.CASES), prepare_faults, 300.0, slow=True,
    ),
    FaultTest(
        "R8", "one bit of a weight or moment that several processes hold flips in one of them",
        f"all stop before it is saved (exit code 6), naming tensor and processes; {SAME}",
        "flips", let_copies_drift, 21, prepare_copies, 180.0,
    ),
    FaultTest(
        "R10.ranks", "gradients of one of two processes are not finite in a step",
        "both skip the step, with the bits of a run in which both had it", "faults", spoil_one_process, 12,
    ),
    FaultTest(
        "R9", "1, 2 and 4 processes by turns, stages ended by a step or by SIGKILL", SAME, "chains", run_chain, 30,
        prepare_chain, 300.0, slow=True,
    ),
    FaultTest(
        "R9.refused", "numbers of processes that do not divide the micro-batches",
        "refused in one line (exit code 2), nothing is begun", "starts", refuse_processes, 3, drawn=False,
    ),
)  # fmt: skip
