"""A note on a terminal while a verb is silent: what it is doing, erased by the first thing that it prints."""

import os
import sys
import threading
import time
from typing import Any

from hmoe.cli.interrupts import INTERRUPTS
from hmoe.cli.streams import OutputStream

_WORK = {  # of verbs that import torch -> what they do then
    "train": "opening the run and its data",
    "eval": "reading the model",
    "inspect": "reading the model",
    "generate": "reading the model",
    "chat": "reading the model",
    "serve": "reading the model",
    "export": "reading the model",
    "import": "reading the model",
    "upcycle": "reading the model",
    "finetune": "reading the model",
    "bench": "preparing what is timed",
    "info": "asking for the hardware",
}
_SILENT_SECONDS = 0.4
_PERIOD_SECONDS = 0.5
_ERASE = b"\r\x1b[K"


class WaitingNote:
    """Tells on a terminal what a verb does, once it has been silent for a while, until it prints something.

    Nothing is shown, and no thread runs, where standard error is no terminal.

    Args:
        arguments: the command line, whose first word is the verb.
    """

    def __init__(self, arguments: list[str]) -> None:
        # Of several processes on one terminal the first one tells.
        speaks = os.environ.get("RANK", "0") == "0"
        self._work = _WORK.get(arguments[0]) if arguments and speaks else None
        self._done = threading.Event()
        self._lock = threading.RLock()  # a signal's handler may print while the same thread holds it
        self._start = 0.0

    def __enter__(self) -> "WaitingNote":
        if self._work is not None and _is_live_terminal(sys.stderr):
            self._start = time.monotonic()
            OutputStream.before_output = self.stop
            threading.Thread(target=self._show, name="waiting note", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Erase the note; it does not come again."""
        OutputStream.before_output = None
        self._done.set()
        with self._lock:
            if INTERRUPTS.erase:
                _write_to_terminal(INTERRUPTS.erase)
                INTERRUPTS.erase = b""

    def _show(self) -> None:
        pause = _SILENT_SECONDS
        while not self._done.wait(pause):
            pause = _PERIOD_SECONDS
            seconds = time.monotonic() - self._start
            text = "loading torch" if _is_importing("torch") else self._work
            with self._lock:
                if self._done.is_set():
                    return
                INTERRUPTS.erase = _ERASE
                _write_to_terminal(_ERASE + f"{text} ... {seconds:.0f} s".encode())


def _is_importing(name: str) -> bool:
    """Return whether a module is not imported in full yet."""
    spec: Any = getattr(sys.modules.get(name), "__spec__", None)
    return spec is None or getattr(spec, "_initializing", False)


def _is_live_terminal(stream: Any) -> bool:
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"


def _write_to_terminal(text: bytes) -> None:
    """Write past sys.stderr, which may be in use by the thread that a signal has stopped."""
    try:  # noqa: SIM105 - also while the interpreter ends
        os.write(2, text)
    except OSError:
        pass
