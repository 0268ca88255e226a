"""Starting the processes of a run on this machine, watching them, and starting them again. No torch.

They meet by a file, new for each start: nothing of an earlier start is found there, and no port is opened for it.
Each has a log; the first one writes to this console, too.
"""

import itertools
import math
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from hmoe.errors import CheckpointError, ConfigError, DataError, DistributedError, NonFiniteError
from hmoe.parallel.launched_process import LaunchedProcess
from hmoe.parallel.process_numbers import CANNOT_MEET, LOG_VARIABLE, STORE_VARIABLE, ProcessNumbers

_LEAVING_SECONDS = 10.0  # that the others have to end by themselves, after the first that failed
_NOT_ENDING = "hangs: it did not end when another had"
_LOOK_SECONDS = 0.05
_WATCHDOG = "Watchdog caught collective"  # NCCL's words
_SIGN_SECONDS = 5.0  # within which a process that lives shows it
# Of errors that come again: of the recipe, the data, checkpoints and numbers that are not finite.
_FINAL_CODES = tuple(kind.exit_code for kind in (ConfigError, DataError, CheckpointError, NonFiniteError))


def _have_no_progress() -> object:
    return None


@dataclass(frozen=True)
class LaunchOptions:
    """How processes are started and watched.

    Attributes:
        num_processes: how many.
        logs: folder of their logs, which are appended to.
        say: prints a line.
        take_signals: returns the signals that they are to get, each once.
        restarts: how often in a row they are started again without progress.
        measure_progress: returns another value once there was progress.
        silent_seconds: after which a process that shows no sign of life is given up.
        has_steps: whether what they do has training steps.
    """

    num_processes: int
    logs: Path
    say: Callable[[str], None]
    take_signals: Callable[[], Sequence[int]] = tuple
    restarts: int = 0
    measure_progress: Callable[[], object] = _have_no_progress
    silent_seconds: float = 50.0
    has_steps: bool = True


class _Failure(NamedTuple):
    """What the processes ended with, but for those that others made end.

    Attributes:
        exit_code: of them all.
        text: what happened, in words.
        is_told: whether the first process has told it on this console.
    """

    exit_code: int
    text: str
    is_told: bool


def launch_processes(command: Sequence[str], options: LaunchOptions) -> int:
    """Run a command as several processes until they end, and return the exit code of all.

    They are started again if one was killed, hangs, or fails in a way that may not come again. All have ended when
    this returns or raises.

    Raises:
        DistributedError: if they failed more often than is allowed; names the process, and its step.
    """
    stopping, num_restarts, progress = False, 0, options.measure_progress()
    with tempfile.TemporaryDirectory(prefix="hmoe-") as folder:
        for attempt in itertools.count():
            with _start(command, options, Path(folder) / f"store-{attempt}") as processes:
                stopping |= _watch(processes, options)
                failure = _explain(processes, options)
            if failure is None:
                return 0
            if failure.exit_code in _FINAL_CODES:
                if not failure.is_told:
                    options.say(failure.text)
                return failure.exit_code
            before, progress = progress, options.measure_progress()
            num_restarts = num_restarts + 1 if progress == before else 1
            if stopping or num_restarts > options.restarts:
                raise DistributedError(failure.text)
            options.say(f"{failure.text}; all start again ({num_restarts} of {options.restarts})")
    raise AssertionError


@contextmanager
def _start(command: Sequence[str], options: LaunchOptions, store: Path) -> Iterator[list[LaunchedProcess]]:
    """Start all processes; none is left afterwards."""
    size = options.num_processes
    threads = max(1, len(os.sched_getaffinity(0)) // size) if hasattr(os, "sched_getaffinity") else 1
    options.logs.mkdir(parents=True, exist_ok=True)
    processes: list[LaunchedProcess] = []
    try:
        for rank in range(size):
            log = options.logs / f"rank-{rank}.log"
            with log.open("a") as file:
                file.write(f"--- {datetime.now():%Y-%m-%d %H:%M:%S}: process {rank} of {size}\n")
            variables = {STORE_VARIABLE: str(store), LOG_VARIABLE: str(log)}
            variables |= {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(threads)}
            processes.append(LaunchedProcess(command, ProcessNumbers(rank, size, rank, size), variables, log))
        yield processes
    finally:
        _kill(processes)
        for process in processes:
            process.close()


def _watch(processes: Sequence[LaunchedProcess], options: LaunchOptions) -> bool:
    """Wait until all processes have ended, or one has failed and the others had time to; pass signals on.

    Returns whether one of the signals asked them to end.
    """
    waiting: list[tuple[int, LaunchedProcess]] = []
    last, deadline, stopping = time.monotonic(), math.inf, False
    while any(process.code is None for process in processes):
        time.sleep(_LOOK_SECONDS)
        for signal_number in options.take_signals():
            if signal_number == signal.SIGTSTP:
                deadline += _pause(processes)
                continue
            stopping |= signal_number == signal.SIGTERM
            waiting += [(signal_number, process) for process in processes]
        now = time.monotonic()
        for process in processes:
            process.look()
            if now - last > 1.0:
                process.forgive_silence()
        # Not before it listens: in its first moments a signal would just end it.
        for signal_number, process in waiting:
            if process.is_listening:
                process.send(signal_number)
        waiting = [pair for pair in waiting if not pair[1].is_listening]
        codes = [process.code for process in processes]
        if any(codes):
            deadline = min(deadline, now + _LEAVING_SECONDS)
        elif 0 in codes:  # all have done their work, and wait for nobody
            deadline = min(deadline, now + max(_LEAVING_SECONDS, options.silent_seconds))
        is_silent = any(p.code is None and p.silent_seconds > options.silent_seconds for p in processes)
        if is_silent or now > deadline:
            break
        last = now
    return stopping


def _pause(processes: Sequence[LaunchedProcess]) -> float:
    """Stop this process and all others, as a terminal's Ctrl-Z asks, until this one goes on; return the seconds."""
    begin = time.monotonic()
    for process in processes:
        process.send_group(signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGSTOP)
    for process in processes:
        process.send_group(signal.SIGCONT)
    return time.monotonic() - begin


def _kill(processes: Sequence[LaunchedProcess]) -> None:
    """End all of them; first all are told, as one may be slow to go."""
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()


def _explain(processes: Sequence[LaunchedProcess], options: LaunchOptions) -> _Failure | None:
    """Return why not all processes ended well: what is not the consequence of another's end comes first."""
    silent = {p.rank: p.silent_seconds for p in processes if p.code is None}
    _kill(processes)
    failed = [process for process in processes if process.code]
    if not failed:
        return None

    def rank_cause(process: LaunchedProcess) -> tuple[int, bool, float]:
        assert process.code is not None
        if process.code == -signal.SIGABRT and (process.rank == 0 or _WATCHDOG in process.read_end()):
            order = (
                5  # so NCCL ends a process that waits for another; the first one's words are not in its log
            )
        elif process.was_killed:
            order = 1 if silent.get(process.rank, 0) > _SIGN_SECONDS else 4
        elif process.code < 0:
            order = 0
        else:
            waits = process.code == DistributedError.exit_code and CANNOT_MEET not in process.read_error()
            order = 2 if process.code in _FINAL_CODES else 6 if waits else 3
        return (
            order,
            not process.read_error(),
            process.end_time,
        )  # those that another's error ends say nothing

    first = min(failed, key=rank_cause)
    is_told = bool(first.read_error()) and first.read_error() == processes[0].read_error()
    return _describe_failure(first, silent.get(first.rank, 0.0), options, is_told)


def _describe_failure(
    process: LaunchedProcess, silent_seconds: float, options: LaunchOptions, is_told: bool
) -> _Failure:
    code, error = process.code or 0, process.read_error()
    name = f"process {process.rank} of {options.num_processes}"
    log = options.logs / f"rank-{process.rank}.log"
    if code in _FINAL_CODES and error:  # without a line it is somebody else's code
        return _Failure(code, error, is_told)
    place = f", {process.describe_step()}" if options.has_steps else ""
    if process.was_killed:
        lives = silent_seconds <= _SIGN_SECONDS
        text = (
            f"{name} {_NOT_ENDING if lives else f'shows no sign of life for {silent_seconds:.0f} s'}{place}"
        )
    elif code < 0:
        text = f"{name} was killed by {_name_signal(-code)}{place}"
    else:
        reason = error.removeprefix("error: ") or f"it ended with {code}"
        text = f"{reason}{place}" if reason.startswith(name) else f"{name} failed{place}: {reason}"
    return _Failure(DistributedError.exit_code, f"{text}; its log is {log}", False)


def _name_signal(signal_number: int) -> str:
    try:
        name = signal.Signals(signal_number).name
    except ValueError:
        return f"signal {signal_number}"
    return f"{name} (as if memory had run out)" if signal_number == signal.SIGKILL else name
