"""A log of a run on disk, which is cut back to the step that a run is resumed at. No torch."""

import json
from pathlib import Path
from typing import Any, TextIO

from hmoe.errors import CheckpointError
from hmoe.runs.log_rows import Row, read_log_rows
from hmoe.storage import flush_to_disk, write_atomic


class LogFile:
    """A file of JSON lines, each with a `step`, whose lines after a given step can be taken back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def cut_back(self, step: int) -> list[Row]:
        """Drop lines after `step` and a torn last line; return those that are kept."""
        kept = list(read_log_rows(self.path, step))
        write_atomic(self.path, b"".join(line for line, _ in kept))
        return kept

    def write(self, row: dict[str, Any]) -> bytes:
        """Append one line, and return it; it may still lie in the system's memory until `flush`."""
        line = json.dumps(row, allow_nan=False) + "\n"
        try:
            if self._file is None:  # not before `cut_back`, which replaces the file
                self._file = self.path.open("a", encoding="utf-8")
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be written: {error.strerror}") from None
        return line.encode()

    def flush(self) -> None:
        """Make all lines durable, before the checkpoint that relies on them."""
        flush_to_disk(self.path)

    def close(self) -> None:
        """Close the file; no more lines are written."""
        if self._file is not None:
            self._file.close()
