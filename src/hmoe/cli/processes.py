"""`--processes N`: a verb that several processes of this machine do together."""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, NoReturn

import typer

import hmoe
from hmoe.cli.output import print_note
from hmoe.cli.progress import ProgressBar
from hmoe.cli.streams import OutputStream, write_log
from hmoe.errors import ConfigError, DistributedError
from hmoe.parallel.launcher import LaunchOptions, launch_processes
from hmoe.parallel.process_numbers import ProcessNumbers, read_process_numbers
from hmoe.train.stop import STOP

if TYPE_CHECKING:
    from hmoe.parallel.workers import Workers
    from hmoe.train.console import Display

NumProcesses = Annotated[
    int | None,
    typer.Option(
        "--processes", min=1, max=1024,
        help="Processes of this machine that share the work, each on a GPU of its own if there are some. Default: 1.",
    ),
]  # fmt: skip


def read_launch(num_processes: int | None) -> tuple[ProcessNumbers, bool]:
    """Return which process this is, and whether it is to start others that do the work.

    Raises:
        ConfigError: if another number of processes was started already.
    """
    numbers = read_process_numbers()
    if num_processes is None:
        return numbers, False
    if "RANK" in os.environ and num_processes != numbers.size:
        raise ConfigError(
            f"--processes {num_processes}: another launcher, which sets RANK and WORLD_SIZE, has started "
            f"{numbers.size} already; leave it out"
        )
    return numbers, num_processes > 1 and numbers.size == 1


class StartOptions(NamedTuple):
    """How many processes a verb starts, how often again without progress, and when it gives one up."""

    num_processes: int
    restarts: int = 0
    timeout_seconds: float = 60.0


def start_processes(
    context: typer.Context,
    options: StartOptions,
    logs: Path | None = None,
    measure_progress: Callable[[], object] = lambda: None,
) -> NoReturn:
    """Do the verb that runs by several processes, and end as they end.

    Args:
        context: of the verb.
        options: how.
        logs: folder of their logs; None: one that is there while they run, and if one of them was lost.
        measure_progress: returns another value once there was progress.
    """
    folder = Path(tempfile.mkdtemp(prefix="hmoe-logs-")) if logs is None else logs
    # A little less than they give each other: a process that was stopped is named, not those that wait for it.
    silent_seconds = options.timeout_seconds * 5 / 6
    before = signal.getsignal(signal.SIGTSTP)
    launch = LaunchOptions(
        options.num_processes, folder, print_note, _make_signal_taker(), options.restarts, measure_progress,
        silent_seconds, has_steps=logs is not None,
    )  # fmt: skip
    keeps = logs is not None
    STOP.cleans_up = True
    if OutputStream.before_output is not None:  # a note that this verb is silent
        OutputStream.before_output()
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _end_by_signal)
    # The processes have groups of their own: some terminals would stop the first one as soon as it writes.
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    # Not from this folder, in which anything may lie, but from where this one was.
    own = str(Path(hmoe.__file__).parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), own]))
    try:
        code = launch_processes([sys.executable, "-P", "-m", "hmoe", *context.find_root().obj], launch)
    except DistributedError:
        keeps = True
        _show_cursor()  # which a process that was killed may have hidden
        raise
    finally:
        if before is not None:
            signal.signal(signal.SIGTSTP, before)
            signal.signal(signal.SIGCONT, signal.SIG_DFL)
        if not keeps:
            shutil.rmtree(folder, ignore_errors=True)
    raise typer.Exit(code)


def _make_signal_taker() -> Callable[[], Sequence[int]]:
    """Return what returns the signals that the processes are to get, each once."""
    told, pauses = False, list[int]()
    if signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL:
        signal.signal(signal.SIGTSTP, lambda signal_number, _: pauses.append(signal_number))
        signal.signal(signal.SIGCONT, lambda *_: pauses.clear())  # which may come before the pause

    def take_signals() -> Sequence[int]:
        nonlocal told
        signals = [signal.SIGUSR1] if STOP.take_checkpoint_wish() else []
        if STOP and not told:
            told = True
            signals.append(signal.SIGTERM)
        if pauses:
            pauses.clear()
            _show_cursor()
            signals.append(signal.SIGTSTP)
        return signals

    return take_signals


def _show_cursor() -> None:
    if sys.stderr.isatty():
        print("\x1b[?25h", end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def join_workers(numbers: ProcessNumbers, device: str = "auto") -> "Iterator[Workers]":
    """Be one of the processes that read together, or the only one."""
    from hmoe.parallel.workers import ONE_WORKER

    if numbers.size == 1:
        yield ONE_WORKER
        return
    from hmoe.parallel.group import join_processes, take_device

    with join_processes(give_up=end_at_once) as messages:
        with messages.together():
            take_device(device, numbers)
        yield messages


@contextlib.contextmanager
def open_progress_bar(workers: "Workers") -> "Iterator[Display]":
    """Show the progress of the first of several processes."""
    if workers.rank > 0:
        from hmoe.train.console import SilentDisplay

        yield SilentDisplay()
        return
    with ProgressBar() as bar:
        yield bar


def choose_note(workers: "Workers") -> Callable[[str], None]:
    """Return what prints a line for the user: the first of several processes alone does."""
    return print_note if workers.rank == 0 else _say_nothing


def choose_echo(workers: "Workers") -> Callable[[str], None]:
    """Return what prints a line of results: the first of several processes alone does."""
    return typer.echo if workers.rank == 0 else _say_nothing


def _say_nothing(text: str) -> None:
    """Leave what there is to say to the first process."""


def _end_by_signal(signal_number: int, _: object) -> NoReturn:
    raise SystemExit(128 + signal_number)  # through what is to be left behind


def end_at_once(text: str) -> NoReturn:
    """Say what became of another process, and end this one, which waits for it."""
    if OutputStream.log is None:
        print_note(f"error: {text}")
    else:
        write_log(f"hmoe: error: {text}\n")  # the launcher tells it
    os._exit(DistributedError.exit_code)
