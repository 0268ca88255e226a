"""Work that is broken off and done again: runs, also of two processes or with experts on disk, and data folders."""

import hashlib
import json
import os
import select
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hmoe.cli.main import _explain
from hmoe.data.prepare import PrepareRequest, prepare_data
from tests.conftest import sentences
from tests.faults.campaign import check
from tests.train import chain_driver, kill_driver
from tests.train.helpers import digests

TRACEBACK = 99  # exit code of an error that no user should meet
SHORT = ["train.steps=8"]


@dataclass(frozen=True)
class Work:
    """Something that leaves files, and that a second call goes on with.

    Attributes:
        processes: what each of its processes does in a folder.
        measure: the bits of what is left when it has ended.
    """

    processes: Sequence[Callable[[Path], None]]
    measure: Callable[[Path], str]


class Attempt:
    """The processes of a work, forked from this one; they begin when `go` is called."""

    def __init__(self, work: Work, folder: Path) -> None:
        (folder.parent / f"{folder.name}.store").unlink(missing_ok=True)
        gate, self._gate = os.pipe()
        self.pids = [self._fork(process, folder, gate) for process in work.processes]
        os.close(gate)

    def _fork(self, process: Callable[[Path], None], folder: Path, gate: int) -> int:
        pid = os.fork()
        if pid:
            return pid
        os.close(self._gate)
        select.select([gate], [], [])
        code = TRACEBACK
        try:
            process(folder)
            code = 0
        except Exception as error:
            line, code = _explain(
                error, ["data" if process.__name__ == "prepare" else "train"]
            )  # as the command line
            print(line, flush=True)
            if not line:
                traceback.print_exc()
                code = TRACEBACK
        except BaseException:
            traceback.print_exc()
        os._exit(code)

    def go(self) -> None:
        """Let them begin."""
        os.close(self._gate)

    def wait(self) -> list[int]:
        """Return the exit codes of all, a signal's number negative."""
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in self.pids]

    def kill(self, pids: Sequence[int] | None = None) -> None:
        """Kill some of its processes, all unless told otherwise."""
        for pid in self.pids if pids is None else pids:
            os.kill(pid, signal.SIGKILL)


def finish(work: Work, folder: Path) -> float:
    """Do a work to its end, and return the seconds it took."""
    start, attempt = time.monotonic(), Attempt(work, folder)
    attempt.go()
    codes = attempt.wait()
    check(not any(codes), f"cannot go on: its processes ended with {codes}")
    return time.monotonic() - start


def check_end(work: Work, folder: Path, expected: str) -> None:
    """Finish a work, and compare what it leaves with what an undisturbed one leaves."""
    finish(work, folder)
    check(work.measure(folder) == expected, "ends with other bits")
    left = [path.name for path in folder.rglob("*") if ".tmp" in path.name or path.name.startswith(".step")]
    check(not left, f"leaves {left}")


def train_alone(folder: Path, *overrides: str) -> None:
    """Train the small run of eight steps that saves every second."""
    kill_driver.run(folder, *overrides)


def train_as(rank: int, size: int, overrides: Sequence[str], folder: Path) -> None:
    """Be one of the processes of a run in exact mode."""
    store = folder.parent / f"{folder.name}.store"
    chain_driver.train(folder, size, rank, store, [*SHORT, *overrides], {})


def measure_run(folder: Path) -> str:
    """SHA-256 of the metrics, and of all files of the newest checkpoint."""
    return json.dumps(digests(folder), sort_keys=True)


def measure_shared_run(folder: Path) -> str:
    """What a run of several processes ends with: the digest of its state, and its metrics."""
    return json.dumps(chain_driver.describe_end(folder))


def make_run(*overrides: str) -> Work:
    return Work([lambda folder: train_alone(folder, *overrides)], measure_run)


def make_shared_run(size: int, *overrides: str) -> Work:
    def be(rank: int) -> Callable[[Path], None]:
        return lambda folder: train_as(rank, size, overrides, folder)

    return Work([be(rank) for rank in range(size)], measure_shared_run)


def make_preparation(source: Path) -> Work:
    """Turn a text file into a data folder with a tokenizer of its own."""

    def prepare(folder: Path) -> None:
        prepare_data(PrepareRequest([str(source)], "bpe:300", segment_bytes=20_000), folder)

    return Work([prepare], measure_folder)


def write_text(file: Path, documents: int) -> None:
    rows = [{"text": sentences(i, 30), "domain": f"d{i % 3}"} for i in range(documents)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def measure_folder(folder: Path) -> str:
    """SHA-256 of all files that are not hidden."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return json.dumps([(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files])


TOP_K = "model.moe.router={name: top_k, k: 2, jitter: 0.1}"
RUN = make_run()
TOP_K_RUN = make_run(TOP_K)
OFFLOADED = make_run("parallel.offload=disk")
SHARED = make_shared_run(2, "parallel.shard=zero2")
_MOVING = ("parallel.shard=zero2", "parallel.experts=expert_parallel", "parallel.replace_gain=0")
FOUR = make_shared_run(4, "parallel.shard=zero2")
PLACED_RUN = make_shared_run(2, *_MOVING, "parallel.replace_every=1")
MOVED_TWICE = make_shared_run(2, *_MOVING, "parallel.replace_every=1", "train.steps=3")
OFFLOADED_RANKS = make_shared_run(
    2, "parallel.exact=false", "parallel.experts=expert_parallel", "parallel.offload=disk"
)
