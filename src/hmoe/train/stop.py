"""SIGTERM and SIGINT ask a run to save and end, SIGUSR1 to save; no torch here, because it is imported later."""

import os
import signal
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """A request to stop, true from the first signal on; a second one ends the process at once.

    Attributes:
        signal_name: of the signal; "" before it came.
        wants_checkpoint: whether a signal asks to save and go on.
        cleans_up: whether a second signal ends the process through what it has to leave behind, with 128 + its number.
    """

    def __init__(self) -> None:
        self.signal_name, self.wants_checkpoint, self.cleans_up, self._is_launched = "", False, False, False

    def install(self, is_launched: bool = False) -> None:
        """Listen from now on.

        A process that a launcher started answers neither on the terminal nor to a second signal, which is the
        launcher's own where somebody signals all: that ends the launcher, and this process with it.
        """
        self._is_launched = is_launched
        for signal_number in _SIGNALS:
            signal.signal(signal_number, self._handle)
        signal.signal(signal.SIGUSR1, self._ask_for_checkpoint)

    def take_checkpoint_wish(self) -> bool:
        """Return whether a signal has asked to save and go on since this was last asked."""
        wish, self.wants_checkpoint = self.wants_checkpoint, False
        return wish

    def _ask_for_checkpoint(self, signal_number: int, frame: FrameType | None) -> None:
        self.wants_checkpoint = True

    def _handle(self, signal_number: int, frame: FrameType | None) -> None:
        # Nothing is saved or printed through Python's streams in here: a handler may run between any two
        # instructions. The loop asks at its next step.
        if self.signal_name and self._is_launched:
            return
        if self.signal_name:
            self._tell("\x1b[?25h\r\x1b[Kinterrupted\n")  # and shows the cursor again
            if self.cleans_up:
                for other in _SIGNALS:
                    signal.signal(other, signal.SIG_IGN)
                raise SystemExit(128 + signal_number)
            for other in _SIGNALS:
                signal.signal(other, signal.SIG_DFL)
            os.kill(os.getpid(), signal_number)
            return
        self.signal_name = signal.Signals(signal_number).name
        self._tell("\r\x1b[Kstopping after this step, with a checkpoint; again to end at once\n")

    def _tell(self, text: str) -> None:
        try:
            if not self._is_launched and os.isatty(2):
                os.write(2, text.encode())
        except OSError:
            return  # the terminal has gone

    def __bool__(self) -> bool:
        return bool(self.signal_name)


STOP = StopRequest()
