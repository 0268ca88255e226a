"""Run folders, paths and surroundings that are unusual: training ends with the same bits, or with one line."""

import json
import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hmoe.data.prepare import PrepareRequest, prepare_data
from hmoe.train import loop, step
from tests.faults.campaign import Case, FaultTest, check
from tests.faults.folder_runs import (
    check_refused,
    check_same_end,
    list_stamps,
    mount_memory,
    read_only,
    train,
    train_in_parts,
    write_documents,
)
from tests.faults.folder_writers import finish_again, start_at_once, start_twice, start_twice_for_real
from tests.train.helpers import command

DATA = ("data.tokenizer=null",)


def prepare_runs(base: Path) -> int:
    """Train a run of the embedded corpus, and one of a data folder."""
    write_documents(base / "text.jsonl")
    prepare_data(PrepareRequest([str(base / "text.jsonl")], "bytes", validation=0.1), base / "data")
    for name, words in (("whole", ()), ("whole-data", (*DATA, f"data.path={base / 'data'}"))):
        code, said = train(base / name, *words)
        check(code == 0, f"does not train: {said[-300:]}")
    return 2 * len(CASES)


def run_folders(case: Case) -> int:
    CASES[case.number % len(CASES)](case, case.draw())
    return 1


def write_nowhere(case: Case, draw: random.Random) -> None:
    """A run folder that may not be written, new or begun."""
    with mount_memory(case.folder / "disk") as disk:
        train(disk / "r", "train.steps=2")
        before = list_stamps(disk / "r")
        with read_only(disk):
            check_refused(disk / "new", (2, 4), "new", "Read-only")
            check_refused(disk / "r", (2, 4), "disk/r", "Read-only")
        check(list_stamps(disk / "r") == before, "a refused start changes the folder")
        train_in_parts(case, disk / "r", draw)


def read_only_data(case: Case, draw: random.Random) -> None:
    """Data on a disk that may not be written."""
    with mount_memory(case.folder / "disk") as disk:
        shutil.copytree(case.base / "data", disk / "data")
        with read_only(disk):
            train_in_parts(
                case, case.folder / "r", draw, *DATA, f"data.path={disk / 'data'}", whole="whole-data"
            )


def jump_clock(case: Case, draw: random.Random) -> None:
    """The wall clock jumps back and forth."""
    real = time.time
    time.time = lambda: real() + draw.choice([-1e9, -3600.0, 0.0, 3600.0, 1e9])
    train_in_parts(case, case.folder / "r", draw)


def use_name(name: bytes) -> Callable[[Case, random.Random], None]:
    """Return a case of a run folder with a name, and of a data folder with it."""

    def try_name(case: Case, draw: random.Random) -> None:
        place = case.folder / os.fsdecode(name)
        train_in_parts(case, place / "r", draw)
        shutil.copytree(case.base / "data", place / "data")
        os.chdir(place)
        # What is not UTF-8 cannot stand in a recipe, but be led to.
        path = "data" if b"\xff" in name else json.dumps(str(place / "data"), ensure_ascii=False)
        train_in_parts(case, place / "d", draw, *DATA, f"data.path={path}", whole="whole-data")

    return try_name


def use_long_path(case: Case, draw: random.Random) -> None:
    """Paths as long as the system takes them, then longer ones, which are refused."""
    folder = case.folder
    while len(str(folder)) < 3500:
        folder = folder / ("d" * draw.randint(100, 200))
    train_in_parts(case, folder / "r", draw)
    check_refused(case.folder / ("n" * 256), (2,), "File name too long")
    while len(str(folder)) < 5000:
        folder = folder / ("d" * 200)
    check_refused(folder, (2,), "File name too long")


def move_run(case: Case, draw: random.Random) -> None:
    """The run folder is moved while nobody trains, and a link leads to it."""
    train(case.folder / "r", "train.steps=3")
    (case.folder / "r").rename(case.folder / "moved")
    train(case.folder / "moved", "train.steps=4")
    (case.folder / "link").symlink_to("moved")
    train_in_parts(case, case.folder / "link", draw)
    check((case.folder / "link").is_symlink(), "the link was replaced")


def move_data(case: Case, draw: random.Random) -> None:
    """The data folder is moved while nobody trains: refused until the new place is given."""
    run, first, second = (case.folder / name for name in ("r", "first", "second"))
    shutil.copytree(case.base / "data", first)
    train(run, *DATA, f"data.path={first}", "train.steps=3")
    first.rename(second)
    before = list_stamps(run)
    check_refused(run, (3,), "first", words=(*DATA, f"data.path={first}"))
    check(list_stamps(run) == before, "a refused start changes the folder")
    train_in_parts(case, run, draw, *DATA, f"data.path={second}", whole="whole-data")


def use_what_is_no_folder(case: Case, draw: random.Random) -> None:
    """A file, a link to nothing, a folder as lock and somebody's own recipe where a run folder should be."""
    (case.folder / "file").write_text("text")
    (case.folder / "dangling").symlink_to("nowhere")
    (case.folder / "locked" / ".lock").mkdir(parents=True)
    (case.folder / "own").mkdir()
    (case.folder / "own" / "config.yaml").write_text("base: tiny\nseed: 5\n")
    for name in ("file", "file/below", "dangling", "locked", "own"):
        check_refused(case.folder / name, (2,), name.partition("/")[0])
    check((case.folder / "file").read_text() == "text", "the file was changed")
    check((case.folder / "own/config.yaml").read_text().endswith("seed: 5\n"), "the recipe was replaced")


def keep_strangers(case: Case, draw: random.Random) -> None:
    """A lock that a dead process left, and files of others, which stay."""
    folder = case.folder / "r"
    folder.mkdir()
    (folder / ".lock").write_bytes(draw.choice([b"999999\n", b"\xff\xfe\0", b"", b"x" * 10_000]))
    (folder / "notes.txt").write_text("mine")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "notes.txt").write_text("mine")
    train_in_parts(case, folder, draw)
    check(
        (folder / "notes.txt").read_text() == (folder / "checkpoints/notes.txt").read_text() == "mine",
        "changed",
    )


def remove_while_training(case: Case, draw: random.Random) -> None:
    """The run folder goes while it is trained: one line, and the same command begins again."""
    hook_step(draw.randint(0, 4), lambda: shutil.rmtree(case.folder / "r"))
    code, said = train(case.folder / "r")
    lines = [line for line in said.splitlines() if "error:" in line]
    check(code == 4 and len(lines) == 1, f"exit code {code}: {said[-300:]!r}")
    shutil.rmtree(case.folder / "r", ignore_errors=True)
    train_in_parts(case, case.folder / "r", draw)


def hook_step(number: int, action: Callable[[], Any]) -> None:
    """Do something before a step, once."""
    done: list[int] = []

    def take_step(*arguments: Any) -> Any:
        if arguments[4] == number and not done:
            done.append(number)
            action()
        return step.train_step(*arguments)

    setattr(loop, "train_step", take_step)  # noqa: B010 - a name that loop imports


def use_few_files(case: Case, draw: random.Random) -> None:
    """Few files may be open: it trains, or ends with one line, and goes on when more may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = len(os.listdir("/proc/self/fd")) + draw.randint(0, 12)
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    code, said = train(case.folder / "r")
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    lines = [line for line in said.splitlines() if "error:" in line]
    check(
        code in (0, 2, 3, 4) and len(lines) == (code != 0), f"{few} files: exit code {code}: {said[-400:]!r}"
    )
    train_in_parts(case, case.folder / "r", draw)


def miss_folders(case: Case, draw: random.Random) -> None:
    """No home, no cache, no folder for temporary files."""
    for name in ("HOME", "XDG_CACHE_HOME", "USER", "LOGNAME"):
        os.environ.pop(name, None)
    os.environ["TMPDIR"] = "/nowhere/at/all"
    words = (*DATA, f"data.path={case.base / 'data'}")
    train_in_parts(case, case.folder / "r", draw, *words, whole="whole-data")


def lose_working_folder(case: Case, draw: random.Random) -> None:
    """The working directory is gone; all paths are absolute."""
    gone = case.folder / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    words = (*DATA, f"data.path={case.base / 'data'}")
    code, said = train(case.folder / "r", *words)
    if code:
        check("working directory" in said, f"exit code {code} without the reason: {said[-200:]!r}")
    os.chdir("/")
    train_in_parts(case, case.folder / "r", draw, *words, whole="whole-data")


def use_umask(case: Case, draw: random.Random) -> None:
    """Nobody else may read what is written."""
    os.umask(0o077)
    train_in_parts(case, case.folder / "r", draw)
    shared = [file.name for file in (case.folder / "r").rglob("*") if file.stat().st_mode & 0o077]
    check(not shared, f"others may read {shared}")


def use_shell(ending: str, code: int, **environment: str) -> Callable[[Case, random.Random], None]:
    """Return a case of a real process whose streams or locale a shell changed."""

    def start(case: Case, draw: random.Random) -> None:
        words = command(case.folder / "r ü", "train.eval_every=1")
        own = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        text = f'"$@" {ending}'
        result = subprocess.run(
            ["bash", "-c", text, "bash", *words], env=own, capture_output=True, check=False
        )
        errors = result.stderr.decode(errors="replace")
        check(
            result.returncode == code and "Traceback" not in errors, f"{result.returncode}: {errors[-300:]!r}"
        )
        check_same_end(case, case.folder / "r ü")

    return start


CASES: tuple[Callable[[Case, random.Random], None], ...] = (
    start_twice, start_twice_for_real, start_at_once, finish_again, write_nowhere, read_only_data,
    jump_clock, use_name("größe-模型-🙂".encode()), use_name(b"not-utf8-\xff\xe9"), use_name(b"with  spaces "),
    use_name(b"new\nline\ttab"), use_name(b"-dash=x"), use_name(b"quo'te\"$(x)`;&[1]*"), use_long_path, move_run,
    move_data, use_what_is_no_folder, keep_strangers, remove_while_training, use_few_files, miss_folders, use_umask,
    lose_working_folder,
    use_shell(">&-", 0), use_shell("<&-", 0), use_shell(">/dev/full", 4), use_shell("<&- >&- 2>&-", 0),
    use_shell("", 0, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", LANG="C"),
    use_shell("", 0, LC_ALL="tr_TR.ISO-8859-9", PYTHONIOENCODING="ascii"),
)  # fmt: skip
TESTS = (
    FaultTest(
        "R17",
        "double starts, finished runs, disks that cannot be written, odd paths, moved and removed folders, clocks, "
        "few files, no HOME or TMPDIR, closed streams, umask, locales",
        "one writer, a finished run stays as it is, the same bits wherever it lies, or one line and an exit code",
        "situations",
        run_folders,
        prepare=prepare_runs,
    ),
)
