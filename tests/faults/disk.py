"""R5: disks that fill up, calls that fail: what was there stays, a line says why, and more room is all it needs."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from hmoe.checkpoint.manifest import list_checkpoint_steps, locate_checkpoint, verify_checkpoint
from tests.faults.campaign import Case, FaultTest, NotPossibleError, check, own_mounts
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
ERRORS = {"ENOSPC": "No space left on device", "EIO": "Input/output error", "EROFS": "Read-only file system"}
USER_ERRORS = (2, 3, 4, 6)  # no folder can be made, data, checkpoint, and what the other processes end with


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """Mount a disk in memory that holds no more than `size` bytes."""
    folder.mkdir()
    own_mounts()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "faults", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        raise NotPossibleError("a small disk cannot be mounted (needs root)")
    try:
        yield folder
    except BaseException:
        shutil.copytree(
            folder, folder.with_name("kept"), dirs_exist_ok=True
        )  # the disk goes with its process
        raise
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
    size = int(json.loads((base / "bytes.json").read_text()) * rng.uniform(0.02, 1.0))
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
    return int(any(codes))  # else it was large enough


def fail_call(work: Work, case: Case) -> int:
    """Let one call fail as a full or a broken disk does, then go on to the end."""
    error, text = list(ERRORS.items())[case.number % len(ERRORS)]
    folder, call = case.folder / "traced", read_call(case.base, case.number // len(ERRORS))
    attempt = Attempt(work, folder)
    code = run_injected(attempt, case.folder / "trace.txt", call, f"error={error}:when={call.number}")
    told = (case.folder / "output.txt").read_text()
    check(code != TRACEBACK and "Traceback" not in told, f"{error} of {call}: {told[-400:]}")
    check(code in (0, 2, 3, 4), f"{error} of {call}: ends with {code}")
    lines = [line for line in told.splitlines() if line.startswith("error: ")]
    check(code == 0 or (len(lines) == 1 and text in lines[0]), f"{error} of {call}: says {told[-400:]}")
    for step in list_checkpoint_steps(folder):
        verify_checkpoint(locate_checkpoint(folder, step))
    check_end(work, folder, read_expected(case.base)[0])
    return 1


def failing(name: str, fault: str, work: Work) -> FaultTest:
    enumerate_calls = enumerated(name, fault, work).prepare
    assert enumerate_calls is not None
    prepare: Callable[[Path], int] = lambda base: len(ERRORS) * (enumerate_calls(base) or 0)  # noqa: E731
    promise = f"one line, exit code 2, 3 or 4, or the work goes on; {SAME} once the disk is well"
    return FaultTest(
        name,
        fault,
        promise,
        "calls that fail",
        lambda case: fail_call(work, case),
        None,
        prepare,
        drawn=False,
    )


def enumerate_failures(base: Path) -> int:
    return len(ERRORS) * enumerate_preparation(base)


def fail_preparation(case: Case) -> int:
    return fail_call(make_preparation(case.base / "text.jsonl"), case)


TESTS = (
    FaultTest(
        "R5", "a disk of 2% to 100% of what a run, two processes, or a data folder leave",
        f"a line that says so, exit code 2, 3, 4, 6 of another process; whole files stay; {SAME} once there is room",
        "disks", fill_disk, 60, prepare_disks,
    ),
    failing("R5.calls", "a run of which one system call fails: no space, input/output error, read-only", RUN),
    failing("R5.offload", "the same with experts on disk", OFFLOADED),
    FaultTest(
        "R5.data", "hmoe data prepare of which one system call fails",
        "one line, exit code 2, 3 or 4, or it goes on; a second call leaves the bytes of an undisturbed one",
        "calls that fail", fail_preparation, None, enumerate_failures, drawn=False,
    ),
)  # fmt: skip
