"""The folder of an evaluation: a file per finished task, so that a stopped one goes on where it was.

OUT/{evaluation.json, tasks/piqa.json, ..., results.json, table.txt}
"""

import json
import re
from pathlib import Path
from typing import Any

from hmoe.errors import ConfigError
from hmoe.evaluate.table import table
from hmoe.storage import write_atomic

FORMAT = 1
_KEYS = {"task", "data", "metrics", "documents", "requests", "chance", "majority_class", "tokens", "activated_units"}
_KEYS |= {"truncated_requests", "windowed_requests", "activated_ratio"}  # what a record must hold


class Outcome:
    """An evaluation of one model with one set of options; `key` says which.

    Raises:
        ConfigError: if the folder holds another evaluation, or anything else.
    """

    def __init__(self, folder: Path, key: dict[str, Any]) -> None:
        self._folder = folder
        self._tasks = folder / "tasks"
        head = folder / "evaluation.json"
        key = {"format": FORMAT, **key}
        if head.exists():
            self._compare(_read(head), key)
        elif folder.exists() and (not folder.is_dir() or any(not p.name.startswith(".") for p in folder.iterdir())):
            raise ConfigError(f"{folder}: is not empty and holds no evaluation; name another --out")
        self._tasks.mkdir(parents=True, exist_ok=True)
        write_atomic(head, _json(key))

    def load(self, name: str, data: str | None) -> dict[str, Any] | None:
        """The record of a finished task, None if it is not finished.

        Raises:
            ConfigError: if it was evaluated on other data.
        """
        path = self._path(name)
        if not path.exists():
            return None
        record = _record(path)
        if record.get("data") != data:
            raise ConfigError(f"{path}: was evaluated on other benchmark files; name another --out")
        return record

    def save(self, name: str, record: dict[str, Any]) -> None:
        """A task is finished."""
        write_atomic(self._path(name), _json(record))

    def all(self) -> dict[str, dict[str, Any]]:
        """Every finished task of the folder."""
        records = [_record(path) for path in sorted(self._tasks.glob("*.json"))]
        return {record["task"]: record for record in records}

    def close(self, result: dict[str, Any]) -> None:
        """Write the result of all finished tasks and its table."""
        write_atomic(self._folder / "results.json", _json(result))
        write_atomic(self._folder / "table.txt", table(result).encode())

    def _path(self, name: str) -> Path:
        return self._tasks / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}.json"

    def _compare(self, there: dict[str, Any], asked: dict[str, Any]) -> None:
        for name, value in asked.items():
            if there.get(name) != value:
                values = "" if name == "model" else f" ({there.get(name)} there, {value} now)"
                raise ConfigError(
                    f"{self._folder}: holds an evaluation with another {name}{values}; name another --out"
                )


def _record(path: Path) -> dict[str, Any]:
    record = _read(path)
    if not record.keys() >= _KEYS or not isinstance(record["metrics"], dict):
        raise ConfigError(f"{path}: damaged; delete it, and its task is evaluated again")
    return record


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: damaged; delete it, and its task is evaluated again")
    return content


def _json(tree: dict[str, Any]) -> bytes:
    return (json.dumps(tree, indent=1) + "\n").encode()
