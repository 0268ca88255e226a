"""Kills, and disks that fail, while an expert on disk is fetched, its gradients are written back, or it is updated."""

import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

from tests.faults.campaign import Case, FaultTest, check
from tests.faults.kills import SAME, prepare_work, read_expected
from tests.faults.works import OFFLOADED, Attempt, Work, check_end, finish
from tests.train.kill_driver import KINDS, TRANSFERS, count_calls, kill_itself


def counting(file: Path, kind: str) -> Callable[[Path], None]:
    """Return the work's process, which writes down how many transfers of a kind it made."""

    def be(folder: Path) -> None:
        count = count_calls(0, TRANSFERS, kind)
        OFFLOADED.processes[0](folder)
        file.write_text(str(count()))

    return be


def acting(limit: int, kind: str, act: Callable[[], None]) -> Callable[[Path], None]:
    """Return the work's process, to which something happens at the `limit`-th transfer of a kind."""

    def be(folder: Path) -> None:
        count_calls(limit, TRANSFERS, kind, act)
        OFFLOADED.processes[0](folder)

    return be


def prepare_transfers(base: Path) -> None:
    prepare_work(OFFLOADED, base)
    counts = {}
    for kind in KINDS:
        finish(Work([counting(base / "count", kind)], OFFLOADED.measure), base / kind)
        counts[kind] = int((base / "count").read_text())
        check(counts[kind] > 0, f"no transfer is of {kind}")
    (base / "counts.json").write_text(json.dumps(counts))


def draw_transfer(case: Case) -> tuple[str, int]:
    """Return a kind of transfer, each in its turn, and the number of one of these."""
    kind, counts = KINDS[case.number % len(KINDS)], json.loads((case.base / "counts.json").read_text())
    return kind, case.draw().randint(1, counts[kind])


def meet_at_transfer(case: Case, kind: str, limit: int, act: Callable[[], None]) -> int:
    """Let something happen at a transfer, and return the exit code."""
    attempt = Attempt(Work([acting(limit, kind, act)], OFFLOADED.measure), case.folder / "run")
    attempt.go()
    (code,) = attempt.wait()
    return code


def kill_transfer(case: Case) -> int:
    kind, limit = draw_transfer(case)
    code = meet_at_transfer(case, kind, limit, kill_itself)
    check(code == -signal.SIGKILL, f"not killed at transfer {limit} of {kind}: {code}")
    check_end(OFFLOADED, case.folder / "run", read_expected(case.base)[0])
    return 1


def fail_transfer(case: Case) -> int:
    """Let the disk fail under a transfer: one line, exit code 4, and the run goes on from its newest checkpoint."""
    kind, limit = draw_transfer(case)
    number = (errno.EIO, errno.ENOSPC)[case.number // len(KINDS) % 2]

    def fail() -> None:
        raise OSError(number, os.strerror(number))

    code, told = meet_at_transfer(case, kind, limit, fail), (case.folder / "output.txt").read_text()
    if code == 0:  # it was fetched by a guess, and nobody needed it
        check(kind == "read_weights", f"transfer {limit} of {kind} is lost")
        check_end(OFFLOADED, case.folder / "run", read_expected(case.base)[0])
        return 0
    lines = [line for line in told.splitlines() if line.startswith("error: ")]
    check(code == 4, f"{os.strerror(number)} at transfer {limit} of {kind}: ends with {code}: {told[-300:]}")
    check(
        len(lines) == 1 and os.strerror(number) in lines[0], f"transfer {limit} of {kind}: says {told[-400:]}"
    )
    check("Traceback" not in told, f"transfer {limit} of {kind}: {told[-400:]}")
    check_end(OFFLOADED, case.folder / "run", read_expected(case.base)[0])
    return 1


TESTS = (
    FaultTest(
        "R1a.transfer", "an expert on disk that is being fetched, written back or updated", SAME, "SIGKILLs",
        kill_transfer, 60, prepare_transfers,
    ),
    FaultTest(
        "R5.transfer", "the disk fails, or is full, while an expert is fetched, written back or updated",
        f"one line that says so, exit code 4; {SAME} once the disk is well", "transfers that fail", fail_transfer, 60,
        prepare_transfers,
    ),
)  # fmt: skip
