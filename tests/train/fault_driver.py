"""Lets one process of a run meet a fault, and looks at what `hmoe train --processes 2` makes of it.

    python -m tests.train.fault_driver FOLDER [--only NAME ...] [--seed SEED]

Every fault, in each of both processes, at each moment, 8 x 2 x 4 = 64, four processes that hang, six faults while
tokens travel to experts that are placed and move, four in a validation, and two processes that are slow for a while.
A case is right if the run ends with the bits of an undisturbed one, or with exit code 4 or 6 in time and a line that
names the process, and continues to those bits; and if no process, no port and no file of the launcher's is left.
Needs root for cgroups (oom) and network namespaces (cut); a fault that cannot be planted here is counted as skipped,
not as passed.
"""

import argparse
import ctypes
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.train.helpers import digests

FAULTS = ("kill", "stop", "raise", "exit", "segfault", "oom", "full", "cut")
MOMENTS = ("start", "random", "all-gather", "save")
# A process that lives but is stuck is given up within a step only: elsewhere it may be reading a large file.
HANGS = itertools.product(("hang",), (0, 1), ("all-gather", "reduce"))
EXCHANGES = itertools.product(("kill", "raise", "hang"), (0, 1), ("exchange",))
VALIDATIONS = itertools.product(("kill", "raise"), (0, 1), ("validation",))
SLOW = itertools.product(("slow",), (0, 1), ("all-gather",))  # within the timeout: nothing to be told
CASES = [*itertools.product(FAULTS, (0, 1), MOMENTS), *HANGS, *EXCHANGES, *VALIDATIONS, *SLOW]
PLACED = ["parallel.experts=expert_parallel", "parallel.replace_every=3", "parallel.replace_gain=0"]
TIMEOUT_SECONDS = 10
LONGEST_SECONDS = (
    TIMEOUT_SECONDS + 10 + 25
)  # that others get to end, two starts of Python with torch, the steps
CGROUP = Path("/sys/fs/cgroup/memory/hmoe-fault")
MARK = "HMOE_FAULT_CASE"


def call_words(folder: Path, moment: str) -> list[str]:
    """The command line of the run."""
    from tests.train.chain_driver import OVERRIDES

    more = ["train.steps=60", "train.save_every=4", "train.device=cpu"]
    words = ["train", "tiny", "--run", str(folder), "--processes", "2", "--timeout", str(TIMEOUT_SECONDS)]
    return [*words, *OVERRIDES, *more, *(PLACED if moment == "exchange" else [])]


def plant(fault: str) -> None:
    """Let this process meet a fault, once in all starts of it."""
    marker = Path(os.environ["HMOE_FAULT_MARKER"])
    if marker.exists():
        return
    marker.touch()
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "hang":
        threading.Event().wait()
    elif fault == "slow":
        time.sleep(TIMEOUT_SECONDS / 2)
    elif fault == "exit":
        os._exit(1)
    elif fault == "raise":
        raise RuntimeError("planted fault")
    elif fault == "segfault":
        ctypes.string_at(8)
    elif fault == "oom":
        (CGROUP / "tasks").write_text(str(os.getpid()))
        kept = [bytearray(os.urandom(2**20)) * 16 for _ in range(1000)]
        del kept
    elif fault == "full":
        fill_disk()
    elif fault == "cut":
        subprocess.run(["ip", "link", "set", "lo", "down"], check=True)


def fill_disk() -> None:
    """Let nothing more of this process reach the disk."""

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    os.fsync = fail  # type: ignore[assignment]


def plant_before(owner: Any, name: str, fault: str, number: int) -> None:
    """Let the fault come with the call of this number of a function."""
    real: Callable[..., Any] = getattr(owner, name)
    calls = itertools.count()

    def call(*arguments: Any, **options: Any) -> Any:
        if next(calls) == number:
            plant(fault)
        return real(*arguments, **options)

    setattr(owner, name, call)


def be_process(words: list[str]) -> None:
    """Be one of the processes, with the fault that the environment says."""
    from hmoe.__main__ import main

    fault, rank, moment, seed = os.environ[MARK].split(":")
    if os.environ["RANK"] == rank:
        rng = random.Random(int(seed))
        if moment == "random":
            signal.signal(signal.SIGALRM, lambda *_: plant(fault))
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.3, 4.5))
        else:
            import torch.distributed.fsdp._fully_shard._fsdp_param_group as gathering

            from hmoe.checkpoint import shared_save
            from hmoe.parallel import exchange, group
            from hmoe.train import loop

            places: dict[str, tuple[Any, str, int]] = {
                "start": (group, "_open_store", 0),
                "all-gather": (gathering, "foreach_all_gather", rng.randrange(5, 200)),
                "reduce": (gathering, "foreach_reduce", rng.randrange(5, 200)),
                "exchange": (exchange, "begin_exchange", rng.randrange(5, 900)),
                "save": (shared_save, "write_pieces", rng.randrange(0, 10)),
                "validation": (loop, "validate", rng.randrange(0, 8)),
            }
            owner, name, number = places[moment]
            plant_before(owner, name, fault, number)
    sys.argv = ["hmoe", *words]
    main()


def be_launcher(words: list[str]) -> None:
    """Be `hmoe`, whose processes are those of `be_process`."""
    from hmoe.__main__ import main
    from hmoe.cli import processes

    real = processes.launch_processes

    def launch(command: list[str], options: Any) -> int:
        return real([sys.executable, "-m", "tests.train.fault_driver", "--process", *command[4:]], options)

    processes.launch_processes = launch  # type: ignore[assignment]
    sys.argv = ["hmoe", *words]
    main()


def run_case(folder: Path, fault: str, rank: int, moment: str, seed: int) -> tuple[str, float]:
    """Return what was wrong, "" if nothing was, and the seconds it took to end."""
    case = f"{fault}:{rank}:{moment}:{seed}"
    variables = {MARK: case, "HMOE_FAULT_MARKER": str(folder.with_suffix(".marker")), "OMP_NUM_THREADS": "1"}
    temporary = folder.with_suffix(".tmp")
    temporary.mkdir()
    variables |= {"TMPDIR": str(temporary)}
    words = [sys.executable, "-m", "tests.train.fault_driver", "--launcher", *call_words(folder, moment)]
    again = ["--restarts", "0"] if fault == "cut" else []
    inside = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"] if fault == "cut" else []
    start, ports = time.monotonic(), set[str]()
    with folder.with_suffix(".out").open("w") as out:
        process = subprocess.Popen(
            [*inside, *words, *again], env={**os.environ, **variables}, stdout=out, stderr=subprocess.STDOUT
        )
        while (code := process.poll()) is None:
            for pid in list_processes(case):
                ports |= list_open_ports(pid)
            if time.monotonic() - start > 3 * LONGEST_SECONDS:
                process.kill()
                return "does not end", time.monotonic() - start
            time.sleep(0.2)
    seconds = time.monotonic() - start
    text = folder.with_suffix(".out").read_text()
    told = re.search(rf"hmoe: .*process {rank} of 2 .*(step|space)", text)
    named = bool(told) or (fault == "cut" and "process " in text and " of 2 " in text)
    problems = []
    if not folder.with_suffix(".marker").exists():
        return "no fault came", seconds
    if fault == "slow":
        problems += [f"ends with {code}: {text.splitlines()[-1:]}"] if code or named else []
    elif code == 0:
        problems += [] if named else ["says nothing of the fault"]
    elif code == 4 and fault == "full":
        problems += [] if "No space left" in text else ["does not say that the disk is full"]
    elif code != 6 or not named:
        problems += [f"ends with {code}: {text.splitlines()[-1:]}"]
    if seconds > LONGEST_SECONDS:
        problems += [f"takes {seconds:.0f} s"]
    left = list_processes(case)
    problems += [f"leaves processes {left}"] if left else []
    problems += [f"could be reached at {sorted(ports)}"] if ports else []
    problems += [f"leaves {path}" for path in temporary.glob("hmoe*")]
    if code != 0:
        finish = subprocess.run(
            [sys.executable, "-m", "hmoe", *call_words(folder, moment)], env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        problems += [] if finish.returncode == 0 else [f"cannot go on: {finish.stderr[-300:]}"]
    return "; ".join(problems), seconds


def measure(folder: Path, placed: bool) -> dict[str, str]:
    """Bits of a run: of its files, or where experts may live elsewhere of what these hold."""
    if not placed:
        return digests(folder)
    newest = max((folder / "checkpoints").glob("step-????????"))
    manifest = json.loads((newest / "MANIFEST.json").read_bytes())
    return {"state": manifest["digest"], "metrics": digests(folder)["metrics.jsonl"]}


def list_processes(mark: str) -> list[int]:
    """All processes of a case."""
    return [
        int(path.name)
        for path in Path("/proc").iterdir()
        if path.name.isdigit() and mark in read_environment(int(path.name))
    ]


def read_environment(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def list_open_ports(pid: int) -> set[str]:
    """Addresses on which a process listens that another machine could reach."""
    ports = set()
    try:
        sockets = {os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()}
        for name in ("tcp", "tcp6"):
            for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
                _, address, _, state, *_, inode = line.split()[:10]
                if state == "0A" and f"socket:[{inode}]" in sockets and not address.startswith("0100007F:"):
                    ports.add(address)
    except OSError:
        pass  # it has ended
    return ports


def is_possible(fault: str) -> bool:
    """Whether a fault can be planted on this machine."""
    if fault == "oom":
        try:
            CGROUP.mkdir(exist_ok=True)
            (CGROUP / "memory.limit_in_bytes").write_text(str(256 * 2**20))
        except OSError:
            return False
    if fault == "cut":
        return (
            subprocess.run(
                ["unshare", "-n", "ip", "link", "set", "lo", "up"], check=False, capture_output=True
            ).returncode
            == 0
        )
    return True


def main() -> None:
    """Run all cases, and print what came of each."""
    if sys.argv[1:2] == ["--process"]:
        be_process(sys.argv[2:])
        return
    if sys.argv[1:2] == ["--launcher"]:
        be_launcher(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=[], help="parts of names, as stop:1 or save")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    base: Path = options.folder
    base.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "hmoe", *call_words(base / "whole", "")]
    subprocess.run(words, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    expected = {placed: measure(base / "whole", placed) for placed in (False, True)}
    counts = {"right": 0, "wrong": 0, "skipped": 0}
    for number, (fault, rank, moment) in enumerate(CASES):
        name = f"{fault}:{rank}:{moment}"
        if options.only and not any(part in name for part in options.only):
            continue
        if not is_possible(fault):
            counts["skipped"] += 1
            continue
        folder = base / name.replace(":", "-")
        problem, seconds = run_case(folder, fault, rank, moment, 1000 * options.seed + number)
        placed = moment == "exchange"
        if not problem and measure(folder, placed) != expected[placed]:
            problem = "ends with other bits"
        counts["wrong" if problem else "right"] += 1
        print(f"{name:20} {seconds:5.1f} s  {problem or 'right'}", flush=True)
        if not problem:
            shutil.rmtree(folder)
    print(", ".join(f"{count} {word}" for word, count in counts.items()))


if __name__ == "__main__":
    main()
