"""What was read so far, kept in a file from which another process goes on after an interruption."""

import json
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hmoe.storage import open_atomic

_FORMAT = 2
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
            return self._read_file(self._path)
        except (OSError, ValueError, KeyError, EOFError, RuntimeError, TypeError, zipfile.BadZipFile):
            pass
        self.reset()
        return 0, False

    def reset(self) -> None:
        """Begin anew, from nothing read."""
        # What was restored before a fault is no whole; its memory is needed, also that which the error held.
        self.sums.clear()
        self.sums = self._make_sums()

    def _read_file(self, path: Path) -> tuple[int, bool]:
        # Opened here: NumPy leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if str(stored["identity"]) != self._identity:
                return 0, False
            num_passes, is_whole = (int(value) for value in stored["progress"])
            for name, item in self.sums.items():
                item.restore_arrays(_PartOfFile(stored, f"{name}/"))
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
        save: Callable[..., None] = np.savez  # whose own keyword is typed, and no name of ours
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open_atomic(self._path) as file:  # array by array: all of them at once would take memory twice
            save(file, **arrays)
        self._last = time.monotonic()
        self._cost = self._last - start


class _PartOfFile(Mapping[str, npt.NDArray[Any]]):
    """The arrays of a file whose names begin alike, each read when it is asked for.

    Args:
        arrays: of the whole file.
        prefix: of the names, which the part's names lack.
    """

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]], prefix: str) -> None:
        self._arrays, self._prefix = arrays, prefix

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self._arrays[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self._prefix) for name in self._arrays if name.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)
