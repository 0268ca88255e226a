"""SIGTERM and SIGINT ask a run to save and end; no torch here, because it is imported later."""

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
        self.signal_name = signal.Signals(signal_number).name
        # Nothing is saved or printed in here: a handler may run between any two instructions.
        # The loop asks at its next step.
        for other in _SIGNALS:
            signal.signal(other, signal.SIG_DFL)

    def __bool__(self) -> bool:
        return bool(self.signal_name)


STOP = StopRequest()
