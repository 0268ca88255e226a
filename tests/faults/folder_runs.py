"""Trains small runs wherever they lie, and compares their ends with that of a run that nothing happened to."""

import contextlib
import hashlib
import io
import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from hmoe.cli.main import run_command_line
from hmoe.config import recipes
from hmoe.errors import shorten_line
from hmoe.runs.run_folder import RunFolder
from tests.conftest import sentences, tiny
from tests.faults.campaign import Case, NotPossibleError, check, own_mounts
from tests.train.helpers import command, digests

END = 6
SAME = ("train.eval_every=1",)  # so that the log does not tell where a run was cut


def write_documents(file: Path) -> None:
    rows = [{"text": sentences(number, 8), "domain": "prose"} for number in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(folder: Path, *words: str) -> tuple[int, str]:
    """Run the command line in this process; return its exit code and all it says."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = run_command_line(command(folder, *SAME, *words)[3:])
    check("Traceback" not in said.getvalue(), f"a traceback: {said.getvalue()[-300:]!r}")
    return code, said.getvalue()


def train_in_parts(case: Case, folder: Path, draw: random.Random, *words: str, whole: str = "whole") -> None:
    """Train to a step that is drawn, then to the end, which must be that of the undisturbed run."""
    for steps in (draw.randint(1, END - 1), END):
        code, said = train(folder, *words, f"train.steps={steps}")
        check(code == 0, f"exit code {code}: {said[-400:]!r}")
    check_same_end(case, folder, whole)


def check_same_end(case: Case, folder: Path, whole: str = "whole") -> None:
    """Compare the log and the newest checkpoint with those of the undisturbed run, byte by byte."""
    expected, have = digests(case.base / whole), digests(folder)
    # A run in the middle of whose name stands a folder has other names; only the files are compared.
    differ = [name for name, digest in expected.items() if digest not in have.values()]
    check(not differ and len(have) == len(expected), f"other bytes in {differ}")


def check_refused(folder: Path, codes: tuple[int, ...], *named: str, words: tuple[str, ...] = ()) -> None:
    """Check that training there ends with one of the codes and a line that says why."""
    code, said = train(folder, *words)
    lines = [line for line in said.splitlines() if "error:" in line]
    check(code in codes and len(lines) == 1, f"exit code {code}: {said[-400:]!r}")
    check(all(name in lines[0] for name in named), f"does not say {named}: {lines[0][-400:]!r}")
    check(lines[0] == shorten_line(lines[0]), f"not printable: {lines[0]!r}"[:400])


def list_stamps(folder: Path) -> dict[str, tuple[str, int]]:
    """Return the SHA-256 and the time of change of each file, but for the lock."""
    return {
        str(file.relative_to(folder)): (
            hashlib.sha256(file.read_bytes()).hexdigest(),
            file.stat().st_mtime_ns,
        )
        for file in folder.rglob("*")
        if file.is_file() and file.name != ".lock"
    }


def hold_lock(folder: Path) -> int:
    """Begin a process that holds a run folder's lock until it is killed; return its id once it does."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        config = recipes.read_recipe("tiny", [*tiny("tiny"), "train.steps=2"])[1]
        with RunFolder(folder, config):
            os.write(writing, b"x")
            signal.pause()
        os._exit(1)
    os.close(writing)
    check(os.read(reading, 1) == b"x", "the lock cannot be held")
    os.close(reading)
    return pid


@contextlib.contextmanager
def mount_memory(folder: Path) -> Iterator[Path]:
    """Give a disk of its own, in memory."""
    folder.mkdir()
    own_mounts()
    words = ["mount", "-t", "tmpfs", "-o", "size=64m", "campaign", str(folder)]
    if os.geteuid() or subprocess.run(words, capture_output=True, check=False).returncode:
        raise NotPossibleError("only root can mount a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
