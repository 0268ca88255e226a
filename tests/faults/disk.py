"""R5: disks that fill up, calls that fail: what was there stays, a line says why, and more room is all it needs."""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from hmoe.checkpoint.manifest import list_checkpoint_steps, locate_checkpoint, verify_checkpoint
from tests.faults.campaign import Case, FaultTest, NotPossibleError, check
from tests.faults.crash_points import enumerate_preparation, enumerated, read_call
from tests.faults.kills import SAME, prepare_work, read_expected
from tests.faults.traced import run_injected
from tests.faults.works import (
    OFFLOADED,
    OFFLOADED_RANKS,
    PLACED_RUN,
    RUN,
    SHARED,
    TRACEBACK,
    Attempt,
    Work,
    check_end,
    make_preparation,
    write_text,
)

WORKS = {"run": RUN, "offloaded": OFFLOADED, "ranks": SHARED, "both": OFFLOADED_RANKS, "move": PLACED_RUN}
USER_ERRORS = (2, 3, 4, 6)  # no folder can be made, data, checkpoint, and what the other processes end with


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """Mount a disk in memory that holds no more than `size` bytes."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "faults", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        raise NotPossibleError("a small disk cannot be mounted (needs root)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def make_room(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=1g", str(folder)], check=True)


def make_work(name: str, base: Path) -> Work:
    return make_preparation(base / "text.jsonl") if name == "data" else WORKS[name]


def prepare_disks(base: Path) -> None:
    """Do each work once without a fault, and measure the room that it takes."""
    write_text(base / "text.jsonl", 200)
    for name in (*WORKS, "data"):
        (base / name).mkdir()
        work = make_work(name, base)
        prepare_work(work, base / name)
        files = [path for path in (base / name / "whole").rglob("*") if path.is_file()]
        (base / name / "bytes.json").write_text(json.dumps(sum(file.stat().st_size for file in files)))


def fill_disk(case: Case) -> int:
    """Do a work on a disk that is too small by a random part, then with room."""
    rng, names = case.draw(), [*WORKS, "data"]
    name = names[case.number % len(names)]
    work, base = make_work(name, case.base), case.base / name
    size = int(json.loads((base / "bytes.json").read_text()) * rng.uniform(0.02, 1.4))
    with small_disk(case.folder / "disk", max(size, 8192)) as disk:
        folder = disk / "out"
        attempt = Attempt(work, folder)
        attempt.go()
        codes = attempt.wait()
        told = (case.folder / "output.txt").read_text()
        check(
            TRACEBACK not in codes and "Traceback" not in told,
            f"{name}, {size} bytes: {codes}, {told[-300:]}",
        )
        if any(codes):
            check(set(codes) <= {0, *USER_ERRORS}, f"{name}, {size} bytes: ends with {codes}")
            check(
                "No space left" in told,
                f"{name}, {size} bytes: does not say that the disk is full: {told[-300:]}",
            )
        for step in list_checkpoint_steps(folder):
            verify_checkpoint(locate_checkpoint(folder, step))
        make_room(disk)
        check_end(work, folder, read_expected(base)[0])
    return 1


def fail_call(work: Work, case: Case) -> int:
    """Let one call fail as a full or a broken disk does, then go on to the end."""
    error = case.draw().choice(("ENOSPC", "EIO"))
    folder, call = case.folder / "traced", read_call(case)
    attempt = Attempt(work, folder)
    code = run_injected(attempt, case.folder / "trace.txt", call, f"error={error}:when={call.number}")
    told = (case.folder / "output.txt").read_text()
    check(code != TRACEBACK and "Traceback" not in told, f"{error} of {call}: {told[-400:]}")
    check(code in (0, *USER_ERRORS), f"{error} of {call}: ends with {code}")
    check(code == 0 or told.strip(), f"{error} of {call}: says nothing")
    for step in list_checkpoint_steps(folder):
        verify_checkpoint(locate_checkpoint(folder, step))
    check_end(work, folder, read_expected(case.base)[0])
    return 1


def failing(name: str, fault: str, work: Work) -> FaultTest:
    prepare = enumerated(name, fault, work).prepare
    promise = f"one line, exit code 3 or 4, or the work goes on; {SAME} once the disk is well"
    return FaultTest(
        name, fault, promise, "calls that fail", lambda case: fail_call(work, case), None, prepare
    )


def fail_preparation(case: Case) -> int:
    return fail_call(make_preparation(case.base / "text.jsonl"), case)


TESTS = (
    FaultTest(
        "R5", "a disk that is full after 2% to 140% of what a run, one of two processes, or a data folder needs",
        f"one line that says so, exit code 3 or 4, whole checkpoints stay whole; {SAME} once there is room",
        "disks", fill_disk, 60, prepare_disks,
    ),
    failing("R5.calls", "a run of which one system call fails (no space, or input/output error)", RUN),
    failing("R5.offload", "the same with experts on disk", OFFLOADED),
    FaultTest(
        "R5.data", "hmoe data prepare of which one system call fails",
        "one line, exit code 3, or it goes on; a second call leaves the bytes of an undisturbed one",
        "calls that fail", fail_preparation, None, enumerate_preparation,
    ),
)  # fmt: skip
