"""Kills training runs and lets them resume, forking from one warm process: seconds instead of minutes.

    python -m tests.train.kill_driver points|random|offloaded FOLDER EVERY_OR_COUNT

`points` kills at the n-th file-system call (every EVERY-th of them), `random` at COUNT random times, `offloaded` COUNT
times at random calls that read or write experts which lie on disk, by turns of fetches, of gradients on their way back,
and of updates. Each killed run is resumed until it ends; prints how many ended with other bytes than the run that was
never killed, whose experts were in memory.
"""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from hmoe.config import recipes
from hmoe.data.corpus import open_corpus
from hmoe.runs.run_folder import RunFolder
from hmoe.train.console import Console
from hmoe.train.loop import train_run
from tests.conftest import tiny
from tests.train.helpers import digests

CALLS = ("mkdir", "open", "fsync", "replace", "rename", "unlink", "rmdir")
TRANSFERS = ("preadv", "pwritev")
KINDS = ("read_weights", "write_gradients", "update")  # functions for which a transfer is made
OFFLOADED = ("parallel.offload=disk",)
OVERRIDES = [
    *tiny("tiny"),
    "train.steps=8",
    "train.save_every=2",
    "train.eval_every=4",
    "train.sample_every=4",
]


def run(folder: Path, *more: str) -> None:
    config = recipes.read_recipe("tiny", [*OVERRIDES, *more])[1]
    with RunFolder(folder, config) as opened:
        train_run(config, opened, Console())


def forked(work: Callable[[], object]) -> int:
    """Run `work` in a child; return its process id."""
    pid = os.fork()
    if pid == 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        work()
        os._exit(0)
    return pid


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def count_calls(
    limit: int,
    names: Sequence[str] = CALLS,
    kind: str | None = None,
    act: Callable[[], None] = kill_itself,
) -> Callable[[], int]:
    """Let this process kill itself, or act, at its `limit`-th call of these; return what tells the number of calls.

    With a kind only calls count that are made, however indirectly, by a function of that name.
    """
    calls = 0
    for name in names:
        real = getattr(os, name)

        def call(*arguments: object, real: Callable[..., object] = real, **options: object) -> object:
            nonlocal calls
            counts = kind is None or is_called_by(kind)
            calls += counts
            if counts and calls == limit:
                act()
            return real(*arguments, **options)

        setattr(os, name, call)
    return lambda: calls


def is_called_by(name: str) -> bool:
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_name != name:
        frame = frame.f_back
    return frame.f_code.co_name == name


def counting(
    limit: int,
    folder: Path,
    count_file: Path | None = None,
    names: Sequence[str] = CALLS,
    kind: str | None = None,
    more: Sequence[str] = (),
) -> None:
    """A run that kills itself at its `limit`-th call."""
    count = count_calls(limit, names, kind)
    run(folder, *more)
    if count_file is not None:
        count_file.write_text(str(count()))


def kill_transfers(base: Path, expected: dict[str, str], amount: int) -> tuple[int, int, int]:
    """Kill runs by turns in each kind of transfer; return kills, completed runs, and how many ended otherwise."""
    folder, rng, kills, runs, different = base / "killed", random.Random(0), 0, 0, 0
    most: dict[str, int] = {}
    for kind in KINDS:
        whole = partial(counting, 0, base / kind, base / "calls", TRANSFERS, kind, OFFLOADED)
        assert wait(forked(whole)) == 0
        assert digests(base / kind) == expected
        most[kind] = int((base / "calls").read_text())
        assert most[kind] > 0
    while kills < amount or folder.exists():
        kind = KINDS[kills % len(KINDS)]
        # Calls are counted, not planned: a resumed run makes fewer, and some limits are never reached.
        limit = rng.randint(1, most[kind]) if kills < amount else 0
        code = wait(forked(partial(counting, limit, folder, None, TRANSFERS, kind, OFFLOADED)))
        kills += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL), code
        if code == 0:
            runs, different = runs + 1, different + (digests(folder) != expected)
            shutil.rmtree(folder)
    return kills, runs, different


def main() -> None:
    """Kill a run at every `amount`-th call (points), or `amount` times at random; print what came of it."""
    mode, base, amount = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    open_corpus("bytes")
    start = time.perf_counter()
    assert wait(forked(lambda: run(base / "whole"))) == 0
    length = time.perf_counter() - start
    assert (
        wait(forked(lambda: counting(0, base / "counted", base / "calls"))) == 0
    )  # after the first run's imports
    expected = digests(base / "whole")
    folder = base / "killed"
    kills = runs = different = 0
    if mode == "offloaded":
        kills, runs, different = kill_transfers(base, expected, amount)
    elif mode == "points":
        limits = list(range(1, int((base / "calls").read_text()) + 1, amount))
        for limit in limits:
            killed = wait(forked(lambda limit=limit: counting(limit, folder)))  # type: ignore[misc]
            kills += killed == -signal.SIGKILL
            assert wait(forked(lambda: run(folder))) == 0
            runs, different = runs + 1, different + (digests(folder) != expected)
            shutil.rmtree(folder)
        assert kills == len(limits), "the run made fewer calls than counted"
    else:
        rng = random.Random(0)
        while kills < amount or folder.exists():
            pid = forked(lambda: run(folder))
            if kills < amount:
                time.sleep(rng.uniform(0, length))
                os.kill(pid, signal.SIGKILL)
            code = wait(pid)
            kills += code == -signal.SIGKILL
            assert code in (0, -signal.SIGKILL), code
            if code == 0:
                runs, different = runs + 1, different + (digests(folder) != expected)
                shutil.rmtree(folder)
    print(f"{kills} kills, {runs} completed runs, {different} with other bytes")


if __name__ == "__main__":
    main()
