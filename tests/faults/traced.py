"""Processes whose system calls are watched, or made to kill them or to fail at the n-th, by strace."""

import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.faults.campaign import NotPossibleError, check
from tests.faults.works import Attempt

# Calls that change what lies on a disk.
CALLS = (
    "mkdir", "mkdirat", "open", "openat", "creat", "write", "pwrite64", "writev", "pwritev", "ftruncate", "fallocate",
    "fsync", "fdatasync", "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "link", "linkat", "symlink",
    "copy_file_range", "sendfile",
)  # fmt: skip
_LINE = re.compile(r"^(\d+) +(\w+)\((.*)")
_WRITING = re.compile(r"O_CREAT|O_TRUNC")


@dataclass(frozen=True)
class Call:
    """A system call of a process: its name, and the how manyth of this name it is, from 1; its text is for people."""

    name: str
    number: int
    text: str


def begin_traced(attempt: Attempt, out: Path, *words: str) -> "subprocess.Popen[bytes]":
    """Attach strace to the one process of an attempt, with these options, and let it begin."""
    strace = shutil.which("strace")
    if strace is None:
        raise NotPossibleError("strace is not installed (apt-get install strace)")
    (pid,) = attempt.pids
    tracer = subprocess.Popen(
        [strace, "-f", "-qq", "-y", "-s", "0", "-o", str(out), *words, "-p", str(pid)],
        stdout=subprocess.DEVNULL, stderr=(out.parent / "strace.txt").open("wb"),
    )  # fmt: skip
    deadline = time.monotonic() + 20
    while "TracerPid:\t0" in Path(f"/proc/{pid}/status").read_text():
        if tracer.poll() is not None:
            attempt.kill()
            attempt.wait()
            raise NotPossibleError(f"strace may not watch: {(out.parent / 'strace.txt').read_text().strip()}")
        check(time.monotonic() < deadline, "strace does not attach")
        time.sleep(0.002)
    attempt.go()
    return tracer


def list_calls(attempt: Attempt, folder: Path, out: Path) -> list[Call]:
    """Run a process to its end, and return the calls that change what lies in a folder, in order."""
    tracer = begin_traced(attempt, out, "-e", f"trace={','.join(CALLS)}")
    check(attempt.wait() == [0], "fails while it is watched")
    tracer.wait()
    numbers: dict[str, int] = {}
    calls = []
    for line in out.read_text().splitlines():
        match = _LINE.match(line)
        if match is None or match[1] != str(attempt.pids[0]):
            continue  # the end of a call that another interrupted, or another thread's
        _, name, text = match.groups()
        numbers[name] = number = numbers.get(name, 0) + 1
        if str(folder) in text and (name not in ("open", "openat") or _WRITING.search(text)):
            calls.append(Call(name, number, text))
    return calls


def run_injected(attempt: Attempt, out: Path, call: Call, injection: str) -> int:
    """Let something happen at a call, as `signal=KILL` or `error=ENOSPC`; return the exit code of the process."""
    inject = f"inject={call.name}:{injection}"
    tracer = begin_traced(attempt, out, "-e", f"trace={call.name}", "-e", inject)
    (code,) = attempt.wait()
    tracer.wait()
    return code
