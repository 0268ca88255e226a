"""Points at which a process can be killed that saves, prunes or moves experts with others, as Python sees them.

Several processes save in threads, for which strace counts anew. Here every call that Python makes to create, rename,
remove or flush a file of the run is a point, before and after each file of tensors, and when it was cut to its half;
and before and after each part of a move of experts.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hmoe.checkpoint import pieces
from hmoe.parallel import replacement
from hmoe.train import expert_mover

_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_MOVES: tuple[tuple[Any, str], ...] = (
    (expert_mover, "move_experts"), (expert_mover, "adopt_model"), (expert_mover, "write_placement_row"),
    (replacement, "_move_layer"), (replacement, "_replace_parameter"), (replacement._Move, "exchange"),
)  # fmt: skip


class Points:
    """Counts points from 1, and kills this process at one of them; 0: at none."""

    def __init__(self, limit: int) -> None:
        self._limit, self.count, self._lock = limit, 0, threading.RLock()

    def reach(self, before_end: Callable[[], None] | None = None) -> None:
        """Be at a point; `before_end` is done if it is the one."""
        with self._lock:
            self.count += 1
            if self.count == self._limit:
                if before_end is not None:
                    before_end()
                os.kill(os.getpid(), signal.SIGKILL)

    def watch_files(self, folder: Path) -> None:
        """Let what changes the files of a folder be points."""
        sys.addaudithook(lambda event, arguments: self._hear(str(folder), event, arguments))
        flush, save = os.fsync, pieces.save_file

        def fsync(handle: int) -> None:
            self.reach()
            flush(handle)

        def save_file(tensors: Any, file: Any, *more: Any) -> None:
            self.reach()
            save(tensors, file, *more)
            self.reach(lambda: os.truncate(file, os.stat(file).st_size // 2))
            self.reach()

        os.fsync, pieces.save_file = fsync, save_file  # type: ignore[assignment]

    def _hear(self, folder: str, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, int) and folder in os.fsdecode(path) and flags & _WRITING:
                self.reach()
        elif event in _CHANGES:
            # Whoever removes a tree names its files by the folder's handle, which comes last; -1: by a path.
            of_handle = event != "os.truncate" and arguments[-1] >= 0
            if of_handle or folder in os.fsdecode(arguments[0]):
                self.reach()

    def watch_moves(self) -> None:
        """Let the beginning and the end of each part of a move of experts be points."""
        for owner, name in _MOVES:
            setattr(owner, name, self._surround(getattr(owner, name)))

    def _surround(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.reach()
            result = real(*arguments, **options)
            self.reach()
            return result

        return call
