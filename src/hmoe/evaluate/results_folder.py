"""Keep the results of an evaluation in a folder, a file per finished task, so that it can be continued.

OUT/{evaluation.json, tasks/piqa.json, ..., results.json}
"""

import json
import re
from pathlib import Path
from typing import Any

from hmoe.errors import ConfigError
from hmoe.runs.benchmark_scores import RESULTS
from hmoe.storage import read_json, write_atomic

_FORMAT = 1
_KEYS = {
    "task",
    "data",
    "metrics",
    "documents",
    "requests",
    "chance",
    "majority_class",
    "tokens",
    "activated_units",
}
_KEYS |= {"truncated_requests", "windowed_requests", "activated_ratio"}  # what a record must hold


class ResultsFolder:
    """The results of one model with one set of options, in a folder.

    Args:
        folder: where they are; empty, absent, or of an evaluation with the same key.
        key: what results must have in common: the model's fingerprint and the options.

    Raises:
        ConfigError: if the folder holds another evaluation, or anything else.
    """

    def __init__(self, folder: Path, key: dict[str, Any]) -> None:
        self.folder = folder
        self._tasks = folder / "tasks"
        head = folder / "evaluation.json"
        key = {"format": _FORMAT, **key}
        if head.exists():
            self._check_key(_read_object(head), key)
        elif folder.exists() and (
            not folder.is_dir() or any(not p.name.startswith(".") for p in folder.iterdir())
        ):
            # Hidden files are what a killed write leaves.
            raise ConfigError(
                f"out = {folder}: is not empty and holds no evaluation; name another folder", argument="out"
            )
        self._tasks.mkdir(parents=True, exist_ok=True)
        write_atomic(head, _encode_json(key))

    def load(self, name: str, data: str | None) -> dict[str, Any] | None:
        """Read the record of a finished task; return None if it is not finished.

        Args:
            name: name of the task.
            data: digest of the data that it is to be evaluated on.

        Raises:
            ConfigError: if it was evaluated on other data.
        """
        path = self._path(name)
        if not path.exists():
            return None
        record = _read_record(path)
        if record.get("data") != data:
            raise ConfigError(
                f"{path}: was evaluated on other benchmark files; name another folder for `out`",
                argument="out",
            )
        return record

    def save(self, name: str, record: dict[str, Any]) -> None:
        """Write the record of a finished task."""
        write_atomic(self._path(name), _encode_json(record))

    def all(self) -> dict[str, dict[str, Any]]:
        """Read the records of every finished task in the folder."""
        records = [_read_record(path) for path in sorted(self._tasks.glob("*.json"))]
        return {record["task"]: record for record in records}

    def close(self, result: dict[str, Any]) -> None:
        """Write the result of all finished tasks."""
        write_atomic(self.folder / RESULTS, _encode_json(result))

    def _path(self, name: str) -> Path:
        return self._tasks / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}.json"

    def _check_key(self, kept: dict[str, Any], key: dict[str, Any]) -> None:
        for name, value in key.items():
            if kept.get(name) != value:
                values = "" if name == "model" else f" ({kept.get(name)} there, {value} now)"
                raise ConfigError(
                    f"out = {self.folder}: holds an evaluation with another {name}{values}; name another folder",
                    argument="out",
                )


def _read_record(path: Path) -> dict[str, Any]:
    record = _read_object(path)
    if not record.keys() >= _KEYS or not isinstance(record["metrics"], dict):
        raise ConfigError(f"{path}: damaged; delete it, and its task is evaluated again")
    return record


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: damaged; delete it, and its task is evaluated again")
    return content


def _encode_json(tree: dict[str, Any]) -> bytes:
    return (json.dumps(tree, indent=1) + "\n").encode()
