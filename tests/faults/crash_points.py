"""R2: SIGKILL at every file-system call of saving, pruning, publishing, setting aside, moving experts, preparing data.

Calls of single processes are enumerated by strace, whatever makes them; for several processes see points.py.
"""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from hmoe.checkpoint.manifest import list_checkpoint_steps, locate_checkpoint, verify_checkpoint
from tests.faults.campaign import Case, FaultTest, check
from tests.faults.kills import SAME, prepare_work, read_expected
from tests.faults.points import Points
from tests.faults.traced import Call, begin_traced, list_calls, run_injected
from tests.faults.works import (
    FOUR,
    MOVED_TWICE,
    OFFLOADED,
    PLACED_RUN,
    RUN,
    SHARED,
    Attempt,
    Work,
    check_end,
    finish,
    make_preparation,
    make_run,
    write_text,
)

EACH = "SIGKILLs, one at every call"
Begin = Callable[[Path, Path], None]  # (base, folder): what lies in a folder before the work goes on there


def begin_empty(_base: Path, _folder: Path) -> None:
    pass


def begin_damaged(base: Path, folder: Path) -> None:
    """A run of which the newest checkpoint is damaged, so that it is set aside, and what a killed process left."""
    shutil.copytree(base / "half", folder)
    newest = locate_checkpoint(folder, max(list_checkpoint_steps(folder)))
    (newest / "model.safetensors").write_bytes(b"")
    (newest.parent / ".step-00000099.tmp").mkdir()
    (newest.parent / ".step-00000099.tmp" / "model.safetensors").write_bytes(b"half")


def enumerate_points(work: Work, begin: Begin, base: Path) -> int:
    """Write down the calls of one process that change its folder; return how many there are."""
    begin(base, base / "traced")
    calls = list_calls(Attempt(work, base / "traced"), base / "traced", base / "trace.txt")
    check(len(calls) > 10, f"only {len(calls)} calls were seen")
    (base / "calls.json").write_text(json.dumps([asdict(call) for call in calls]))
    return len(calls)


def read_call(base: Path, number: int) -> Call:
    return Call(**json.loads((base / "calls.json").read_text())[number])


def check_published(folder: Path) -> None:
    """Check that every checkpoint that has its name is whole, but for one that we damaged."""
    for step in list_checkpoint_steps(folder):
        if (locate_checkpoint(folder, step) / "model.safetensors").stat().st_size:
            verify_checkpoint(locate_checkpoint(folder, step))


def kill_at_point(work: Work, begin: Begin, case: Case) -> int:
    """Kill one process at one call, look at what is left, and go on to the end."""
    folder, call = case.folder / "traced", read_call(case.base, case.number)
    begin(case.base, folder)
    attempt = Attempt(work, folder)
    code = run_injected(attempt, case.folder / "trace.txt", call, f"signal=KILL:when={call.number}")
    check(code == -signal.SIGKILL, f"not killed at {call}: {code}")
    check_published(folder)
    check_end(work, folder, read_expected(case.base)[0])
    return 1


def enumerated(name: str, fault: str, work: Work, begin: Begin = begin_empty) -> FaultTest:
    def prepare(base: Path) -> int:
        prepare_work(work, base)
        if begin is begin_damaged:
            prepare_half(base)
        return enumerate_points(work, begin, base)

    run = lambda case: kill_at_point(work, begin, case)  # noqa: E731
    return FaultTest(name, fault, SAME, EACH, run, None, prepare, drawn=False, slow=begin is begin_damaged)


def prepare_half(base: Path) -> None:
    """A run that ended at step 6, with checkpoints of steps 4 and 6."""
    finish(make_run("train.steps=6"), base / "half")


def enumerate_preparation(base: Path) -> int:
    write_text(base / "text.jsonl", 40)
    work = make_preparation(base / "text.jsonl")
    prepare_work(work, base)
    return enumerate_points(work, begin_empty, base)


def kill_preparation_at_point(case: Case) -> int:
    return kill_at_point(make_preparation(case.base / "text.jsonl"), begin_empty, case)


Watch = Callable[[Points, Path], None]


def watch_files(points: Points, folder: Path) -> None:
    points.watch_files(folder)


def watch_moves(points: Points, _folder: Path) -> None:
    points.watch_moves()


def count_points(work: Work, watch: Watch, base: Path) -> int:
    """Count the points of every process of a work; return how many there are in all."""
    prepare_work(work, base)
    counted = [
        count_in_end(process, watch, base / f"points-{rank}") for rank, process in enumerate(work.processes)
    ]
    finish(Work(counted, work.measure), base / "counted")
    counts = [int((base / f"points-{rank}").read_text()) for rank in range(len(counted))]
    check(min(counts) > 10, f"only {counts} points")
    (base / "counts.json").write_text(json.dumps(counts))
    return sum(counts)


def count_in_end(process: Callable[[Path], None], watch: Watch, file: Path) -> Callable[[Path], None]:
    def be(folder: Path) -> None:
        points = Points(0)
        watch(points, folder)
        process(folder)
        file.write_text(str(points.count))

    return be


def kill_counted(work: Work, watch: Watch, case: Case) -> int:
    """Kill one of several processes at its n-th point, the others then as a launcher does, and go on to the end."""
    left, rank = case.number, 0
    counts = json.loads((case.base / "counts.json").read_text())
    while left >= counts[rank]:
        left, rank = left - counts[rank], rank + 1

    def be_killed(folder: Path) -> None:
        watch(Points(left + 1), folder)
        work.processes[rank](folder)

    processes = [be_killed if other == rank else process for other, process in enumerate(work.processes)]
    folder = case.folder / "killed"
    attempt = Attempt(Work(processes, work.measure), folder)
    attempt.go()
    os.waitid(os.P_PID, attempt.pids[rank], os.WEXITED | os.WNOWAIT)
    attempt.kill([pid for pid in attempt.pids if pid != attempt.pids[rank]])
    codes = attempt.wait()
    check(codes[rank] == -signal.SIGKILL, f"process {rank} was not killed at point {left + 1}: {codes}")
    for step in list_checkpoint_steps(folder):
        verify_checkpoint(locate_checkpoint(folder, step))
    check_end(work, folder, read_expected(case.base)[0])
    return 1


def counted(name: str, fault: str, work: Work, watch: Watch = watch_files) -> FaultTest:
    return FaultTest(
        name, fault, SAME, EACH, lambda case: kill_counted(work, watch, case), None,
        lambda base: count_points(work, watch, base), drawn=False, slow=work != SHARED,
    )  # fmt: skip


FILES = {"model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"}
_SYNC = ("fsync", "fdatasync")


def check_order(case: Case) -> int:
    """Check in one trace that what is renamed was flushed before, file by file, and its folder after."""
    folder, out = case.folder / "traced", case.folder / "trace.txt"
    tracer = begin_traced(
        attempt := Attempt(RUN, folder),
        out,
        "-e",
        "trace=openat,write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,linkat,writev,pwritev,pwritev2",
    )
    check(attempt.wait() == [0], "fails while it is watched")
    tracer.wait()
    dirty: set[str] = set()
    written: set[str] = set()
    waiting: dict[str, str] = {}  # folder whose entry is not on disk yet: what was renamed
    renames = 0
    for line in out.read_text().splitlines():
        name, _, text = line.partition(" ")[2].strip().partition("(")
        paths = re.findall(r'[<"]([^<>"]+)[>"]', re.sub("AT_FDCWD<[^>]*>", "", text))
        if not paths or not str(paths[0]).startswith(str(folder)):
            continue
        if name in ("write", "pwrite64", "writev", "pwritev", "pwritev2"):
            dirty.add(paths[0])
            written.add(paths[0])
        elif name in _SYNC:
            dirty.discard(paths[0])
            waiting.pop(paths[0], None)
        elif name.startswith("rename") and "/checkpoints/.step" in paths[0] and paths[0].endswith(".tmp"):
            unflushed = [path for path in dirty if path.startswith(paths[0])]
            check(not unflushed, f"{paths[0]} is renamed before these are on disk: {unflushed}")
            names = {Path(path).name for path in written if path.startswith(paths[0])}
            check(names >= FILES, f"of {paths[0]} only {names} were seen to be written")
            waiting[str(Path(paths[1]).parent)] = paths[1]
            renames += 1
        elif name.startswith("rename") and paths[1].endswith(".old"):
            check(
                not waiting,
                f"an older checkpoint goes before the name of {list(waiting.values())} is on disk",
            )
        elif (
            name.startswith("rename") and paths[0] in dirty
        ):  # as the library for tensors does within the hidden folder
            dirty.remove(paths[0])
            dirty.add(paths[1])
            written.add(paths[1])
    check(renames == 4 and not waiting, f"{renames} checkpoints were published, not on disk: {waiting}")
    return renames


TESTS = (
    enumerated("R2", "a run at each call of saving, publishing, pruning and logging", RUN),
    enumerated("R2.corrupt", "a run that sets a damaged checkpoint aside and cleans up", RUN, begin_damaged),
    enumerated("R2.offload", "a run whose experts lie on disk", OFFLOADED),
    counted("R2.ranks", "each of two processes that save together", SHARED),
    counted("R2.four", "each of four", FOUR),
    counted("R2.move", "each of two whose experts move at every step", PLACED_RUN),
    counted("R2.moves", "the same at each part of a move of experts", MOVED_TWICE, watch_moves),
    FaultTest(
        "R2.data", "hmoe data prepare", "a second call leaves the bytes of an undisturbed one",
        EACH, kill_preparation_at_point, None, enumerate_preparation, drawn=False,
    ),
    FaultTest(
        "R2b", "nothing: the system calls of a run are read",
        "files and folder are on disk before the rename, the name before anything older goes",
        "checkpoints", check_order, 1, drawn=False,
    ),
)  # fmt: skip
