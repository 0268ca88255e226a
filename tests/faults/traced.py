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
    "copy_file_range", "sendfile", "pwritev2", "msync",
)  # fmt: skip
_LINE = re.compile(r"^(\d+) +(\w+)\((.*)")
_WRITING = re.compile(r"O_CREAT|O_TRUNC")


_RANDOM = re.compile(r"\.tmp\w{6}|#\d+")  # names that the library for tensors draws, and of files without one


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
        if match is None:
            continue  # the end of a call that another interrupted
        thread, name, text = match.groups()
        if thread != str(attempt.pids[0]):
            # Experts come and go beside: their file has no name, and lives no longer than its process (transfers.py).
            changes = str(folder) in text and "(deleted)" not in text
            check(not changes, f"another thread changes the folder, which is not enumerated: {line}")
            continue
        numbers[name] = number = numbers.get(name, 0) + 1
        if str(folder) in text and (name not in ("open", "openat") or _WRITING.search(text)):
            calls.append(Call(name, number, text))
    return calls


def run_injected(attempt: Attempt, out: Path, call: Call, injection: str) -> int:
    """Let something happen at a call, as `signal=KILL` or `error=ENOSPC`; return the exit code of the process.

    Raises:
        AssertionError: if it did not happen, or at another call than the one that was enumerated.
    """
    inject = f"inject={call.name}:{injection}"
    tracer = begin_traced(attempt, out, "-e", f"trace={call.name}", "-e", inject)
    (code,) = attempt.wait()
    tracer.wait()
    calls = [line for line in out.read_text().splitlines() if _LINE.match(line)]
    hit = [line for line in calls if "INJECTED" in line] or calls[-1:]
    check(hit and name_files(call.text) == name_files(hit[0]), f"not at {call}, but at {hit}")
    return code


def name_files(text: str) -> list[str]:
    """Return the names of the files that a call is about, without their folders and what is drawn in them."""
    paths = re.findall(r"[<\"](/[^<>\"]+)[>\"]", text.rpartition(") = ")[0] or text)
    return [_RANDOM.sub("~", Path(path).name) for path in paths]
