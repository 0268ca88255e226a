"""SIGTERM and SIGINT ask a run to save and end. Standard library only: installed before torch is imported."""

import signal
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Set by the first signal; a second one ends the process as if nobody listened."""

    def __init__(self) -> None:
        self.signal_name = ""

    def install(self) -> None:
        """Listen from now on."""
        for number in _SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name
        for one in _SIGNALS:
            signal.signal(one, signal.SIG_DFL)

    def __bool__(self) -> bool:
        return bool(self.signal_name)


STOP = Stop()
