"""SIGTERM and SIGINT ask a run to save and end; no torch here, because it is imported later."""

import os
import signal
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """A request to stop, true from the first signal on; a second one ends the process at once."""

    def __init__(self) -> None:
        self.signal_name = ""

    def install(self) -> None:
        """Listen for SIGTERM and SIGINT from now on."""
        for signal_number in _SIGNALS:
            signal.signal(signal_number, self._handle)

    def _handle(self, signal_number: int, frame: FrameType | None) -> None:
        # Nothing is saved or printed through Python's streams in here: a handler may run between any two
        # instructions. The loop asks at its next step.
        if self.signal_name:
            _write_to_terminal("\x1b[?25h\r\x1b[Kinterrupted\n")  # and shows the cursor again
            for other in _SIGNALS:
                signal.signal(other, signal.SIG_DFL)
            os.kill(os.getpid(), signal_number)
            return
        self.signal_name = signal.Signals(signal_number).name
        _write_to_terminal("\r\x1b[Kstopping after this step, with a checkpoint; again to end at once\n")

    def __bool__(self) -> bool:
        return bool(self.signal_name)


def _write_to_terminal(text: str) -> None:
    try:
        if os.isatty(2):
            os.write(2, text.encode())
    except OSError:
        return  # the terminal has gone


STOP = StopRequest()
