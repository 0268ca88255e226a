"""How a process shows the launcher that started it that it lives, and at which step. Standard library only.

A thread writes a line each second into a pipe: a process that was stopped or has lost its machine writes none, one
that reads a large file does.
"""

import os
import signal
import sys
import threading
import time

HEARTBEAT_VARIABLE = "HMOE_HEARTBEAT"  # number of the pipe's end: its presence says who started this process
WAITING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # blocked until a launched process listens
_PERIOD_SECONDS = 1.0
_DEATH_OF_PARENT = 1  # PR_SET_PDEATHSIG


class Heartbeat:
    """Where this process is, for whoever asks.

    Attributes:
        step: training steps that are done; -1 before training.
    """

    def __init__(self) -> None:
        self.step, self._pipe = -1, -1

    @property
    def has_launcher(self) -> bool:
        """Whether `hmoe.parallel.launcher` started this process."""
        return self._pipe >= 0 or HEARTBEAT_VARIABLE in os.environ

    def start(self) -> None:
        """Write from now on, if a launcher started this process, and end as soon as that is gone.

        Signals that it held back come now: whoever calls this listens for them.
        """
        pipe = os.environ.pop(HEARTBEAT_VARIABLE, None)  # not for processes of this one
        if pipe is None:
            return
        os.set_inheritable(int(pipe), False)  # processes of this one would keep it open
        os.set_blocking(int(pipe), False)  # a launcher that was stopped reads nothing
        self._pipe = int(pipe)
        if sys.platform == "linux":  # also while it is stopped
            import ctypes  # noqa: PLC0415 - of launched processes alone

            ctypes.CDLL(None).prctl(_DEATH_OF_PARENT, signal.SIGKILL)
        threading.Thread(target=self._write_on, name="heartbeat", daemon=True).start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WAITING_SIGNALS)

    def reach(self, step: int) -> None:
        """Note that so many training steps are done."""
        self.step = step
        self._write()

    def describe_step(self) -> str:
        """Return where training is, in words."""
        return "before the first step" if self.step < 0 else f"after step {self.step}"

    def _write_on(self) -> None:
        while True:
            self._write()
            time.sleep(_PERIOD_SECONDS)

    def _write(self) -> None:
        if self._pipe < 0:
            return
        try:
            os.write(self._pipe, f"{self.step}\n".encode())
        except BlockingIOError:
            pass
        except OSError:
            os.killpg(0, signal.SIGKILL)  # nobody is left to say what became of this process and its own


HEARTBEAT = Heartbeat()
