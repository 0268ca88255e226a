"""A process of a run, as the launcher that started it sees it. No torch."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hmoe.parallel.heartbeat import HEARTBEAT_VARIABLE, WAITING_SIGNALS, Heartbeat
from hmoe.parallel.process_numbers import ProcessNumbers

_ERROR = "error: "  # in a line of the command line's own errors


class LaunchedProcess:
    """A child process with a log of its own.

    Args:
        command: its words.
        numbers: which process of the run it is.
        variables: of its environment, besides this process's and those that tell it its numbers.
        log: file that its output is appended to; the first process writes to this console and keeps the log itself.

    Attributes:
        rank: its number.
        code: its exit code, negative for a signal; None while it runs.
        is_listening: whether it answers signals as the run should.
        was_killed: whether `kill` ended it, and not itself.
        end_time: when it was seen to have ended, on a clock of its own.
    """

    def __init__(
        self, command: Sequence[str], numbers: ProcessNumbers, variables: Mapping[str, str], log: Path
    ) -> None:
        self.rank, self.was_killed, self.is_listening = numbers.rank, False, False
        self.code: int | None = None
        self._log, self._log_start = log, log.stat().st_size if log.exists() else 0
        self._place, self._rest, self.end_time = Heartbeat(), b"", 0.0
        self._pipe, its_end = os.pipe()
        os.set_blocking(self._pipe, False)
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        own = dict(zip(names, map(str, numbers), strict=True))
        # From the log's end on, whoever else writes: processes of this one may.
        output = None if numbers.rank == 0 else log.open("ab")
        # Signals wait until it listens (`Heartbeat.start`): in its first moments they would just end it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, WAITING_SIGNALS)
        try:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **variables, **own, HEARTBEAT_VARIABLE: str(its_end)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[its_end],
                # An interrupt on the terminal reaches the launcher alone, which tells them all once.
                process_group=0,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(its_end)
            if output is not None:
                output.close()
        self._last_sign = time.monotonic()

    def look(self) -> None:
        """Take in whether it still runs, what it wrote into its pipe, and when."""
        code = self._process.poll()
        try:
            while content := os.read(self._pipe, 65536):
                self._last_sign, self.is_listening = time.monotonic(), True
                *lines, self._rest = (self._rest + content).split(b"\n")
                # The largest: two threads write, and either may come late.
                self._place.step = max([self._place.step, *map(int, lines)])
        except BlockingIOError:
            pass
        if code is not None and self.code is None:
            self.code, self.end_time = code, time.monotonic()

    def forgive_silence(self) -> None:
        """Count its silence from now: this process, too, was stopped."""
        self._last_sign = time.monotonic()

    @property
    def silent_seconds(self) -> float:
        """Seconds since it last showed that it lives."""
        return time.monotonic() - self._last_sign

    def send(self, signal_number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.code is None:
            self._process.send_signal(signal_number)

    def send_group(self, signal_number: int) -> None:
        """Send it and the processes that it started a signal, if it still runs."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # as in `kill`
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal_number)

    def kill(self) -> None:
        """End it at once, with the processes that it started."""
        if self._process.poll() is None:
            self.was_killed = True
        # The latter is macOS's, of one that has ended.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Wait until it is gone."""
        self._process.wait()
        self.look()

    def close(self) -> None:
        """Give up the pipe."""
        os.close(self._pipe)

    def read_end(self) -> str:
        """Return the end of what it has written since it was started; of the first process what went through Python."""
        try:
            with self._log.open("rb") as file:
                file.seek(max(self._log_start, self._log.stat().st_size - 65536))
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""

    def read_error(self) -> str:
        """Return the last line that it wrote on an error since it was started; "" if it wrote none."""
        # PyTorch writes the process's number before each line of a traceback.
        lines = [
            line.removeprefix(f"[rank{self.rank}]: ").removeprefix("hmoe: ")
            for line in self.read_end().splitlines()
        ]
        return next((line for line in reversed(lines) if _is_error(line)), "")

    def describe_step(self) -> str:
        """Return where its training was when it last said so."""
        return self._place.describe_step()


def _is_error(line: str) -> bool:
    """Return whether a line is one of the command line's errors, or the last one of a traceback."""
    name, colon, _ = line.partition(": ")
    return line.startswith(_ERROR) or (
        bool(colon) and name.replace(".", "").isidentifier() and name.endswith("Error")
    )
