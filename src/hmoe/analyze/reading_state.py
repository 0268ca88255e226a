"""What was read so far, kept in a file from which another process goes on after an interruption."""

import io
import json
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hmoe.storage import write_atomic

_FORMAT = 1
_PERIOD_SECONDS = 30.0
_LARGEST_SHARE = 0.05  # of the time that may go into writing


class Resumable(Protocol):
    """Something that is summed up over texts, whose state is arrays."""

    def list_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the state by name."""
        ...

    def restore_arrays(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over a state."""
        ...


class ReadingState:
    """The file of what was read so far.

    Args:
        path: of the file; None: nothing is kept.
        identity: what must be equal for a reading to go on: model, texts, options.
        make_sums: makes what is summed up, by name, from nothing read.

    Attributes:
        sums: what is summed up.
    """

    def __init__(
        self, path: Path | None, identity: Mapping[str, Any], make_sums: Callable[[], dict[str, Any]]
    ) -> None:
        self._path, self._make_sums = path, make_sums
        self.sums: dict[str, Resumable] = make_sums()
        self._identity = json.dumps({"format": _FORMAT, **identity}, sort_keys=True)
        self._last, self._cost = time.monotonic(), 0.0

    def restore(self) -> tuple[int, bool]:
        """Take over what an interrupted reading left, and return the passes it had done and whether it had ended.

        A file that is damaged or of another reading is passed over: reading begins anew, which changes no result.
        """
        if self._path is None or not self._path.is_file():
            return 0, False
        try:
            # Opened here: NumPy leaves a damaged file open.
            with self._path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            if str(arrays.pop("identity")) != self._identity:
                return 0, False
            num_passes, is_whole = (int(value) for value in arrays.pop("progress"))
            for name, item in self.sums.items():
                item.restore_arrays(_select_prefix(arrays, f"{name}/"))
        except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile):
            self.sums = self._make_sums()  # what was restored before the fault is no whole
            return 0, False
        return num_passes, bool(is_whole)

    def save_sometimes(self, num_passes: int) -> None:
        """Keep what was read, if the last time is long ago compared with what keeping it takes."""
        if time.monotonic() - self._last > max(_PERIOD_SECONDS, self._cost / _LARGEST_SHARE):
            self.save(num_passes, False)

    def save(self, num_passes: int, is_whole: bool) -> None:
        """Keep what was read."""
        if self._path is None:
            return
        start = time.monotonic()
        arrays = {
            f"{name}/{key}": value
            for name, item in self.sums.items()
            for key, value in item.list_arrays().items()
        }
        arrays |= {"identity": np.array(self._identity), "progress": np.array([num_passes, is_whole])}
        file = io.BytesIO()
        save: Callable[..., None] = np.savez  # whose own keyword is typed, and no name of ours
        save(file, **arrays)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self._path, file.getvalue())
        self._last = time.monotonic()
        self._cost = self._last - start


def _select_prefix(arrays: Mapping[str, npt.NDArray[Any]], prefix: str) -> dict[str, npt.NDArray[Any]]:
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
