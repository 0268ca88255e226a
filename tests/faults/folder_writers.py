"""Several starts in one run folder, at one time and after another."""

import os
import random
import signal
import subprocess
import time

from tests.faults.campaign import Case, check
from tests.faults.folder_runs import (
    END,
    check_refused,
    check_same_end,
    hold_lock,
    list_stamps,
    train,
    train_in_parts,
)
from tests.train.helpers import command


def start_twice(case: Case, draw: random.Random) -> None:
    """A second start is refused with the holder's process, and changes nothing."""
    train(case.folder / "r", "train.steps=2")
    holder = hold_lock(case.folder / "r")
    before = list_stamps(case.folder / "r")
    try:
        check_refused(case.folder / "r", (2,), f"process {holder} is training")
        check(list_stamps(case.folder / "r") == before, "a refused start changes the folder")
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    train_in_parts(case, case.folder / "r", draw)


def start_twice_for_real(case: Case, draw: random.Random) -> None:
    """The same with a real process, which SIGTERM then ends well."""
    words = command(case.folder / "r", "train.steps=1000000", "train.eval_every=1")
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    log = case.folder / "r" / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.02)
    check_refused(case.folder / "r", (2,), f"process {process.pid} is training")
    process.send_signal(signal.SIGTERM)
    check(process.wait() == 0, f"the first one ends with {process.returncode}")


def start_at_once(case: Case, draw: random.Random) -> None:
    """Several starts at one moment: at most one trains, the others are refused or find it finished."""
    children = []
    for _ in range(draw.randint(2, 4)):
        pid = os.fork()
        if not pid:
            os._exit(train(case.folder / "r")[0])
        children.append(pid)
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children)
    check(0 in codes and set(codes) <= {0, 2}, f"exit codes {codes}")
    check_same_end(case, case.folder / "r")


def finish_again(case: Case, draw: random.Random) -> None:
    """A finished run that is started again changes no byte and no time of a file."""
    train_in_parts(case, case.folder / "r", draw)
    before = list_stamps(case.folder / "r")
    for _ in range(2):
        code, said = train(case.folder / "r")
        check(code == 0 and f"finished already: step {END}" in said, f"{code}: {said[-200:]!r}")
        check(list_stamps(case.folder / "r") == before, "starting a finished run changes files")
