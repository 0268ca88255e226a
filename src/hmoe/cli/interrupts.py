"""Ctrl-C ends a verb with one line and an exit code, wherever it comes.

Standard library only: this is installed before all else is imported.
"""

import os
import signal
import sys

TYPE_CHECKING = False  # as typing has it
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

_ENDS_WELL = ("serve", "chat")  # verbs that run until they are interrupted
_IMPORT_FRAMES = "<frozen importlib"


def get_interrupted_code(arguments: list[str]) -> int:
    """Return the exit code of a command line that was interrupted."""
    return 0 if arguments[:1] and arguments[0] in _ENDS_WELL else 130


class Interrupts:
    """Raises KeyboardInterrupt on SIGINT, except where it would be lost or turned into something else.

    Those places are imports (a C extension answers with an ImportError of its own) and callbacks (Python prints
    a traceback and goes on): there the process ends at once.

    Attributes:
        came: whether a signal has come.
        exit_code: exit code of the process then.
        erase: what erases a line that is shown on the terminal for a while.
    """

    def __init__(self) -> None:
        self.came = False
        self.exit_code = 0
        self.erase = b""

    def install(self, exit_code: int) -> None:
        """Listen from now on, unless whoever started the process has it ignore the signal."""
        self.exit_code = exit_code
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            return
        signal.signal(signal.SIGINT, self._handle)
        sys.unraisablehook = self._end_if_lost

    def end(self) -> None:
        """End the process without Python's own end, which threads inside PyTorch would turn into an abort."""
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError, RuntimeError):
                continue  # closed, full, or being written when the signal came
        os._exit(self.exit_code)

    def _handle(self, _signal: int, frame: "FrameType | None") -> None:
        self.came = True
        # An exception would pass through the import system, which may answer with an error of its own.
        while frame is not None:
            if frame.f_code.co_filename.startswith(_IMPORT_FRAMES):
                self._say_and_end()
            frame = frame.f_back
        raise KeyboardInterrupt

    def _end_if_lost(self, lost: "Any") -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):
            self._say_and_end()
        sys.__unraisablehook__(lost)

    def _say_and_end(self) -> None:
        if self.exit_code:
            try:
                os.write(2, self.erase + b"hmoe: interrupted\n")
                self.erase = b""
            except OSError:
                pass
        self.end()


INTERRUPTS = Interrupts()
