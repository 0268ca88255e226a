"""What a fault test is, and how its cases are run: each in a process of its own, with a time limit, from a seed.

Every case is forked from one warm process, which takes milliseconds where Python and torch take seconds. A case is
right if its test raises nothing, ends in time and leaves no process behind; what cannot be planted on this machine is
skipped, which counts as not passed. No case is tried twice.
"""

import contextlib
import ctypes
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

RIGHT, WRONG, SKIPPED = "right", "wrong", "skipped"
_SUBREAPER = 36  # prctl: orphans become children of this process, where they are seen
_NEW_MOUNTS = 0x20000  # unshare: CLONE_NEWNS
_LEAVING_SECONDS = 5.0  # that a process has to end which a case has let go of


class NotPossibleError(Exception):
    """A fault that cannot be planted on this machine; says why."""


@dataclass(frozen=True)
class Case:
    """One case of a fault test.

    Attributes:
        number: of the case; with the seed it says all that is drawn.
        seed: of the campaign.
        folder: empty, of this case alone; kept if the case is wrong.
        base: what the test's `prepare` left there, for all cases; nobody changes it.
    """

    number: int
    seed: int
    folder: Path
    base: Path

    def draw(self) -> random.Random:
        """Return the generator of this case, always the same."""
        return random.Random(f"{self.seed}:{self.number}")


@dataclass(frozen=True)
class FaultTest:
    """One row of the campaign's table.

    Attributes:
        name: as R1a.
        fault: what is planted, in words.
        promise: what must hold all the same.
        unit: what is counted, in the plural.
        run: a case; returns how many units it tried, raises if the promise was broken.
        cases: of a whole campaign with one seed; None: as many as `prepare` returns.
        prepare: fills the base folder, and returns the number of cases.
        seconds: after which a case counts as one that does not end.
        drawn: whether cases differ from seed to seed; an enumeration is the same with every seed.
        slow: whether it begins after the others, since one case takes many seconds.
    """

    name: str
    fault: str
    promise: str
    unit: str
    run: Callable[[Case], int]
    cases: int | None = None
    prepare: Callable[[Path], int | None] | None = None
    seconds: float = 120.0
    drawn: bool = True
    slow: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of a case: right, wrong or skipped, why, how many units were tried, and how long it took."""

    result: str
    units: int
    detail: str
    seconds: float


def run_case(test: FaultTest, case: Case) -> Outcome:
    """Run one case in a process of its own; its folder is kept if it was wrong."""
    case.folder.mkdir(parents=True, exist_ok=True)
    outcome = fork_and_wait(lambda: test.run(case), case.folder, test.seconds)
    if outcome.result != WRONG:
        shutil.rmtree(case.folder, ignore_errors=True)
    return outcome


def prepare_test(test: FaultTest, base: Path) -> int:
    """Fill the folder that all cases of a test read, and return how many cases there are.

    Raises:
        NotPossibleError: where this machine cannot plant the fault.
        AssertionError: if it fails.
    """
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir(parents=True)
    cases = test.cases
    if test.prepare is not None:
        prepare = test.prepare
        outcome = fork_and_wait(lambda: prepare(base) or 0, base, 600.0)
        if outcome.result == SKIPPED:
            raise NotPossibleError(outcome.detail)
        if outcome.result == WRONG:
            raise AssertionError(f"cannot be prepared: {outcome.detail}")
        cases = outcome.units if cases is None else cases
    assert cases is not None, test.name
    return cases


def fork_and_wait(work: Callable[[], int], folder: Path, seconds: float) -> Outcome:
    """Call a function in a child whose output goes to `folder/output.txt`, and wait until it and all it began ended."""
    start = time.monotonic()
    reading, writing = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _be_child(work, folder, writing)
    os.close(writing)
    told = _read_until(reading, pid, start + seconds)
    os.close(reading)
    if told is None:
        os.killpg(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    _kill_group(pid)
    took = time.monotonic() - start
    if told is None:
        return Outcome(WRONG, 0, f"does not end within {seconds:.0f} s", took)
    if not told:
        return Outcome(WRONG, 0, f"its process ended with {code}", took)
    result, units, detail = json.loads(told)
    return Outcome(result, units, detail, took)


def _be_child(work: Callable[[], int], folder: Path, writing: int) -> NoReturn:
    """Do the work, tell what came of it, and end without Python's own end, which would be the parent's too."""
    os.setsid()
    own_orphans()
    log = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # Streams of its own: whoever began this process may have replaced its own.
    sys.stdout, sys.stderr, sys.stdin = open(1, "w", 1), open(2, "w", 1), open(os.devnull)  # noqa: SIM115
    told: tuple[str, int, str]
    try:
        told = RIGHT, work(), ""
        left = list_living_children()
        if left:
            told = WRONG, told[1], f"leaves processes: {left}"
    except NotPossibleError as error:
        told = SKIPPED, 0, str(error)
    except BaseException as error:
        traceback.print_exc()
        told = WRONG, 0, f"{type(error).__name__}: {error}"[:500]
    sys.stdout.flush()
    os.write(writing, json.dumps(told).encode())
    os._exit(0)


def _read_until(file: int, pid: int, deadline: float) -> bytes | None:
    """Return what a child tells, b"" if it ends without a word, None if that takes too long."""
    content = b""
    while time.monotonic() < deadline:
        # Processes that the child began may hold the pipe open after its end.
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        while select.select([file], [], [], 0.0 if ended else 0.1)[0]:
            piece = os.read(file, 65536)
            content += piece
            if not piece or content.endswith(b"]"):
                return content
        if ended:
            return content
    return None


def _kill_group(pid: int) -> None:
    """Kill what is left of a case's processes, and of its orphans."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def own_mounts() -> None:
    """Let what this process mounts be seen by it and its children alone, and end with them.

    Raises:
        NotPossibleError: without root.
    """
    words = ["mount", "--make-rprivate", "/"]
    if (
        ctypes.CDLL(None).unshare(_NEW_MOUNTS)
        or subprocess.run(words, check=False, capture_output=True).returncode
    ):
        raise NotPossibleError("a disk of its own cannot be mounted (needs root)")


def own_orphans() -> None:
    """Let this process be the parent of all that its children leave behind."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1)


def list_living_children(patience: float | None = None) -> list[str]:
    """Return the command lines of children that do not end soon, orphans included; ended ones are waited for.

    Those that do not end are killed.
    """
    deadline = time.monotonic() + (_LEAVING_SECONDS if patience is None else patience)
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return []
        children = _read_children()
        if time.monotonic() > deadline and children:
            for pid, _ in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return [words for _, words in children]
        time.sleep(0.02)


def _read_children() -> list[tuple[int, str]]:
    children = []
    pids = [pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()]
    for pid in pids:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        children.append((int(pid), words))
    return children


def describe_case(test: FaultTest, case: Case, outcome: Outcome) -> str:
    """Return a line on a case that was not right, with the command that repeats it."""
    again = f"make faults ONLY={test.name}:{case.number} SEED={case.seed}"
    kept = f"; see {case.folder}" if outcome.result == WRONG else ""
    return f"{test.name}:{case.number} {outcome.result}: {outcome.detail}{kept}; again: {again}"


def check(condition: Any, words: str) -> None:
    """Raise AssertionError with these words unless the condition holds."""
    if not condition:
        raise AssertionError(words)
