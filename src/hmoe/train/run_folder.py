"""The run folder: one writer, one config, logs that are cut back to the restored step. No torch."""

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import yaml

from hmoe import recipes
from hmoe.config import RunConfig
from hmoe.errors import CheckpointError, ConfigError, RunBusyError
from hmoe.files import fsync, write_atomic


class RunFolder:
    """A locked run folder; the lock ends with the process, however it ends.

    Raises:
        RunBusyError: if another process is training here; names its pid.
        ConfigError: if the folder holds a run of another recipe, naming the key.
    """

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / ".lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be a run folder: {error.strerror}") from None
        try:
            self._take_lock()
            self._check_config(config)
        except Exception:
            self._lock.close()
            raise

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def write(self, name: str, content: bytes) -> None:
        """Replace a file of the folder."""
        write_atomic(self.path / name, content)

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "?"
            raise RunBusyError(f"{self.path}: process {holder} is training in this folder") from None
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()

    def _check_config(self, config: RunConfig) -> None:
        file = self.path / "config.yaml"
        steps = {path.name for path in (self.path / "checkpoints").glob("step-*")}
        if steps and file.exists():  # nothing is bound by a start that failed
            try:
                old = recipes.check(yaml.safe_load(file.read_text(encoding="utf-8")))
            except (yaml.YAMLError, ConfigError, UnicodeDecodeError) as error:
                raise ConfigError(f"{file}: damaged ({error}); start again with another --run") from None
            changed = recipes.changed_keys(old, config)
            if steps == {"step-00000000"}:  # given weights, nothing trained yet: they bind the model only
                changed = [key for key in changed if key.startswith("model.")]
            if changed:
                raise ConfigError(
                    f"{changed[0]}: differs from {file} (changed keys: {', '.join(changed)}); a resumed run may change only "
                    "budgets, logging and train.save_every; choose another --run"
                )
        content = recipes.dump(config).encode()
        if not file.exists() or file.read_bytes() != content:
            self.write("config.yaml", content)


class Log:
    """A file of JSON lines, each with a `step`, whose lines after a given step can be taken back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def cut_back(self, step: int) -> dict[str, Any]:
        """Drop lines after `step` and a torn last line; return the last line kept, {} if none."""
        kept = [(line, row) for line, row in self._rows() if row["step"] <= step]
        write_atomic(self.path, b"".join(line for line, _ in kept))
        self._file = self.path.open("a", encoding="utf-8")
        return kept[-1][1] if kept else {}

    def last(self) -> dict[str, Any]:
        """The last whole line, {} if none."""
        rows = list(self._rows())
        return rows[-1][1] if rows else {}

    def _rows(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Whole lines; a torn one can only be the last."""
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        before = 0
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                whole = line.endswith(b"\n") and type(row["step"]) is int and row["step"] > before
            except (ValueError, KeyError, TypeError):
                whole = False
            if whole:
                before = row["step"]
                yield line, row
            elif number < len(lines):
                raise CheckpointError(
                    f"{self.path}:{number}: damaged line; mend it, or move the file away to lose its rows"
                )

    def write(self, row: dict[str, Any]) -> None:
        """Append one line."""
        assert self._file is not None, "cut_back opens the log"
        try:
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be written: {error.strerror}") from None

    def flush(self) -> None:
        """Make all lines durable, before the checkpoint that relies on them."""
        fsync(self.path)

    def close(self) -> None:
        """No more lines."""
        if self._file is not None:
            self._file.close()
