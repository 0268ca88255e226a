"""R1, R3: SIGKILL at random times: a run, a launcher and its processes, a data folder, a sweep."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from hmoe.checkpoint.manifest import list_checkpoint_steps
from hmoe.runs.placement_log import read_placement_log
from tests.faults.campaign import Case, FaultTest, check
from tests.faults.works import (
    FOUR,
    MOVED_TWICE,
    OFFLOADED,
    OFFLOADED_RANKS,
    PLACED_RUN,
    RUN,
    SHARED,
    TOP_K_RUN,
    Attempt,
    Work,
    check_end,
    finish,
    make_preparation,
    write_text,
)
from tests.sweep.helpers import read_table
from tests.train import fault_driver
from tests.train.helpers import digests, one_thread

KILLS = 4  # of a case
SAVE_EVERY = 2
LONGEST_STEP_SECONDS = 60.0
SAME = "the end has the bits of an undisturbed run, nothing half done is left"


def prepare_work(work: Work, base: Path) -> None:
    """Do the work once without a fault; keep its bits, and how long it takes."""
    finish(work, base / "warm")  # what is imported and cached by the first one
    seconds = finish(work, base / "whole")
    if work in (PLACED_RUN, MOVED_TWICE):
        check(any(row["sent_bytes"] for row in read_placement_log(base / "whole")), "no expert moves")
    (base / "expected.json").write_text(json.dumps([work.measure(base / "whole"), seconds]))


def read_expected(base: Path) -> tuple[str, float]:
    expected, seconds = json.loads((base / "expected.json").read_text())
    return expected, seconds


def kill_often(work: Work, case: Case) -> int:
    """Kill a work `KILLS` times at random moments, beginning anew where it ended before; compare the end."""
    rng, (expected, length) = case.draw(), read_expected(case.base)
    folder, kills, attempts = case.folder / "killed", 0, 0
    while kills < KILLS:
        attempts += 1
        check(attempts < 50 * KILLS, "the work ends before it can be killed")
        killed = kill_once(work, folder, rng, length)
        kills += killed
        if not killed:
            check(work.measure(folder) == expected, f"ends with other bits after {kills} kills")
            shutil.rmtree(folder)
        elif work in (RUN, TOP_K_RUN, OFFLOADED):
            check_loss(folder)
    check_end(work, folder, expected)
    return kills


def kill_once(work: Work, folder: Path, rng: random.Random, length: float) -> bool:
    """Kill one or all processes of a work at a random time; return whether it had not ended by then."""
    attempt = Attempt(work, folder)
    attempt.go()
    time.sleep(rng.uniform(0, length))
    first = rng.sample(attempt.pids, rng.choice((1, len(attempt.pids))))
    attempt.kill(first)
    if len(first) < len(attempt.pids):
        time.sleep(rng.choice((0, 0.3)))  # in which the others may notice, or go on
        attempt.kill()  # as a launcher does with the others
    codes = attempt.wait()
    killed = -signal.SIGKILL in codes
    check(set(codes) <= {0, -signal.SIGKILL, *([6] if killed else [])}, f"its processes ended with {codes}")
    return killed


def check_loss(folder: Path) -> None:
    """Check that no more steps are lost than lie between two checkpoints."""
    metrics = folder / "metrics.jsonl"
    rows = metrics.read_bytes().split(b"\n")[:-1] if metrics.exists() else []
    last = json.loads(rows[-1])["step"] if rows else 0
    newest = max(list_checkpoint_steps(folder), default=0)
    check(last - newest <= SAVE_EVERY, f"step {last} was written down, the newest checkpoint is {newest}")


def work_test(name: str, fault: str, work: Work, cases: int, seconds: float = 180.0) -> FaultTest:
    return FaultTest(
        name, fault, SAME, "SIGKILLs", lambda case: kill_often(work, case), cases,
        lambda base: prepare_work(work, base), seconds, slow=work not in (RUN, OFFLOADED, SHARED),
    )  # fmt: skip


def kill_preparation(case: Case) -> int:
    return kill_often(make_preparation(case.base / "text.jsonl"), case)


def prepare_preparation(base: Path) -> None:
    write_text(base / "text.jsonl", 600)
    prepare_work(make_preparation(base / "text.jsonl"), base)


def launch(folder: Path, out: Path) -> "subprocess.Popen[bytes]":
    words = [sys.executable, "-m", "hmoe", *fault_driver.call_words(folder, "")]
    return subprocess.Popen(words, env=one_thread(), stdout=out.open("ab"), stderr=subprocess.STDOUT)


def list_ranks(launcher: int) -> list[int]:
    file = Path(f"/proc/{launcher}/task/{launcher}/children")
    return [int(pid) for pid in file.read_text().split()] if file.exists() else []


def kill_launched(case: Case) -> int:
    """Kill one process, all of them, or the launcher of `hmoe train --processes 2`; all must end or start again."""
    rng, (expected, seconds) = case.draw(), read_expected(case.base)
    whom, folder = ("one", "all", "launcher")[case.number % 3], case.folder / "run"
    launcher = launch(folder, case.folder / "launched.txt")
    wait_for(lambda: len(list_ranks(launcher.pid)) == 2, "no processes were started")
    time.sleep(rng.uniform(0, 0.8 * seconds))
    ranks = list_ranks(launcher.pid)
    alive = [pid for pid in ranks if is_running(pid)] if launcher.poll() is None else []
    victims = {
        "one": rng.sample(alive, min(len(alive), 1)),
        "all": alive,
        "launcher": [launcher.pid] * bool(alive),
    }[whom]
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    code = launcher.wait()
    check(code in ((0, -signal.SIGKILL) if whom == "launcher" else (0,)), f"{whom} killed: ends with {code}")
    wait_for(lambda: not any(is_running(pid) for pid in ranks), "processes outlive their launcher")
    if code != 0:
        code = launch(folder, case.folder / "again.txt").wait()
        check(code == 0, f"cannot go on: {code}")
    check(json.dumps(digests(folder), sort_keys=True) == expected, f"{whom} killed: ends with other bits")
    return len(victims)


def prepare_launched(base: Path) -> None:
    start = time.monotonic()
    check(launch(base / "run", base / "launched.txt").wait() == 0, "an undisturbed run fails")
    kept = json.dumps(digests(base / "run"), sort_keys=True), time.monotonic() - start
    (base / "expected.json").write_text(json.dumps(kept))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Callable[[], bool], problem: str) -> None:
    """Wait until something is so; raise AssertionError if that takes absurdly long."""
    end = time.monotonic() + LONGEST_STEP_SECONDS
    while not condition():
        check(time.monotonic() < end, problem)
        time.sleep(0.02)


SWEEP = ["sweep", "grid", "tiny", "tiny-equal", "model.dim=32", "model.heads=2", "train.steps=20", "train.save_every=2",
         "data.batch_tokens=256", "train.eval_every=0", "train.sample_every=0", "--controls"]  # fmt: skip


def sweep(folder: Path, out: Path) -> "subprocess.Popen[bytes]":
    words = [sys.executable, "-m", "hmoe", *SWEEP, "--out", str(folder)]
    return subprocess.Popen(words, env=one_thread(), stdout=out.open("ab"), stderr=subprocess.STDOUT)


def begin_again(folder: Path, out: Path) -> bool:
    """Run a sweep to its end, those of its runs that failed included."""
    words = [sys.executable, "-m", "hmoe", *SWEEP, "--retry", "--out", str(folder)]
    return (
        subprocess.run(
            words, env=one_thread(), stdout=out.open("ab"), stderr=subprocess.STDOUT, check=False
        ).returncode
        == 0
    )


def prepare_sweep(base: Path) -> None:
    start = time.monotonic()
    check(sweep(base / "whole", base / "out.txt").wait() == 0, "an undisturbed sweep fails")
    (base / "seconds").write_text(str(time.monotonic() - start))


def kill_sweep(case: Case) -> int:
    """Kill a sweep, what it trains, or both at random moments; its table must be that of one that ran through."""
    rng, length = case.draw(), float((case.base / "seconds").read_text())
    folder, out, kills = case.folder / "sweep", case.folder / "out.txt", 0
    for whom in ("sweep", "training", "both"):
        process = sweep(folder, out)
        try:
            process.wait(rng.uniform(0.3, 0.9) * length)
        except subprocess.TimeoutExpired:
            victims = [process.pid] * (whom != "training") + list_ranks(process.pid) * (whom != "sweep")
            for pid in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            kills += len(victims)
            process.wait()
    check(kills, "it ended before it could be killed")
    # A training that was killed has failed, and is tried again where that is asked for.
    check(begin_again(folder, out), "cannot go on")
    same = read_table(folder / "rows.csv") == read_table(case.base / "whole" / "rows.csv")
    check(same, "the table is another one")
    return kills


TESTS = (
    work_test("R1a", "a training run, top-p, killed at random moments", RUN, 50),
    work_test("R1a.top-k", "the same with top-k and jitter", TOP_K_RUN, 10),
    work_test("R1a.offload", "a run whose experts lie on disk", OFFLOADED, 10),
    work_test("R1a.ranks", "one or both of two processes, a survivor at once or after a while", SHARED, 10),
    work_test("R1a.both", "two processes, each with its experts on disk", OFFLOADED_RANKS, 10),
    work_test("R1a.four", "one or all of four processes", FOUR, 10),
    work_test("R1a.move", "the same while experts move between them", PLACED_RUN, 10),
    FaultTest(
        "R1b", "one process, both, or the launcher of hmoe train --processes 2", f"all end or start again; {SAME}",
        "SIGKILLs", kill_launched, 48, prepare_launched, 240.0, slow=True,
    ),
    FaultTest(
        "R1.sweep", "a sweep and what it trains", "the table of results is that of an undisturbed sweep", "SIGKILLs",
        kill_sweep, 6, prepare_sweep, 400.0, slow=True,
    ),
    FaultTest(
        "R3", "hmoe data prepare", "a second call leaves the bytes of an undisturbed one", "SIGKILLs", kill_preparation,
        13, prepare_preparation,
    ),
)  # fmt: skip
