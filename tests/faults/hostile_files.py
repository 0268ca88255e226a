"""Files that were made to run code, to write elsewhere or to fill the memory, and folders changed by chance."""

import gzip
import io
import json
import os
import resource
import shutil
import zipfile
from pathlib import Path

import yaml

import hmoe
from tests.faults.campaign import Case, FaultTest, check
from tests.faults.hostile_artefacts import FOLDERS, make_pickles
from tests.faults.hub_folders import change_folders, fuzz_headers, make_folders
from tests.faults.mutations import check_command_line, check_user_error, limit_memory

_MARKER = "ran"
_MOST_BYTES = 3 << 30
_YAML = ("!!python/object/apply:os.mkdir [MARKER]", "!!python/object/new:os.mkdir [MARKER]", "!!python/name:os.mkdir",
         "!!python/module:os", "!!python/object:tests.faults.hostile_artefacts._Payload {}")  # fmt: skip
_TEXT_CASES = ("gzip bomb", "zip bomb", "zip bomb named .gz", "pickle", "torch", "npz")
_NAMES = (*FOLDERS, *(f"recipe {text}" for text in _YAML), *(f"data {name}" for name in _TEXT_CASES),
         "checkpoint pickle",
          "checkpoint torch", "checkpoint with ../")  # fmt: skip


def prepare_all(base: Path) -> int:
    """Make the folders, and return how many artefacts there are."""
    make_folders(base)
    return len(_NAMES)


def plant_artefact(case: Case) -> int:
    """Plant a hostile artefact, and use it in every way that reads it."""
    name = _NAMES[case.number]
    work, marker = case.folder / "work", case.folder / _MARKER
    work.mkdir()
    limit_memory(_MOST_BYTES)
    before = _measure_peak()
    os.chdir(work)
    if name in FOLDERS:
        _open_hostile(case, name, work, marker)
    elif name.startswith("recipe "):
        (work / "r.yaml").write_text(
            f"base: tiny\nseed: {name.removeprefix('recipe ').replace('MARKER', str(marker))}\n"
        )
        check_command_line(["plan", str(work / "r.yaml")], {2}, name)
        check_command_line(
            ["plan", "tiny", f"seed={name.removeprefix('recipe ').replace('MARKER', str(marker))}"], {2}, name
        )
    elif name.startswith("data "):
        _prepare_hostile(name.removeprefix("data "), work, marker)
    else:
        _load_hostile(case, name.removeprefix("checkpoint "), work, marker)
    check(not marker.exists(), f"code ran: {name}")
    written = {path.name for path in case.folder.iterdir()} - {"work", "output.txt", "outside.safetensors"}
    check(not written, f"{written} written outside of the folder: {name}")
    check(
        _measure_peak() - before < _MOST_BYTES,
        f"{_measure_peak() - before} bytes more were in memory: {name}",
    )
    return 1


def _measure_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _open_hostile(case: Case, name: str, work: Path, marker: Path) -> None:
    must_refuse, put = FOLDERS[name]
    folder = case.folder / "work" / "hf"
    shutil.copytree(case.base / "own", folder)
    put(folder, marker)
    try:
        hmoe.open(folder)
    except BaseException as error:
        check_user_error(error, name)
        is_opened = False
    else:
        is_opened = True
    check(not (must_refuse and is_opened), f"is opened: {name}")
    codes = {2, 3, 4} if must_refuse else {0, 2, 3, 4}
    check_command_line(["import", str(folder), str(work / "run")], codes, name)


def _prepare_hostile(name: str, work: Path, marker: Path) -> None:
    bomb = io.BytesIO()
    if name == "gzip bomb":  # 600 MB of one line in 600 KB
        with gzip.open(bomb, "wb") as packed:
            for _ in range(600):
                packed.write(b"x" * (1 << 20))
        file, codes = work / "a.txt.gz", {0, 2, 3}
        command = ["--max-bad", "0"]
    else:
        if name.startswith("zip"):
            with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("../ran", b"\0" * (200 << 20))
        else:
            bomb.write(make_pickles(marker)[name])
        file, codes, command = work / ("a.jsonl.gz" if name.endswith(".gz") else "a.jsonl"), {3}, []
    file.write_bytes(bomb.getvalue())
    words = ["data", "prepare", str(file), "--out", str(work / "out"), "--tokenizer", "bytes", *command]
    if name == "gzip bomb":  # a record of that size: it is read, but never through a limit of memory
        (work / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "' + b"x" * (50 << 20)))
        check_command_line([*words[:2], str(work / "b.jsonl.gz"), *words[3:]], {3}, name)
    else:
        check_command_line(words, codes, name)


def _load_hostile(case: Case, name: str, work: Path, marker: Path) -> None:
    """Put a pickle into every file of every checkpoint of a run, or a name that leads out of the folder."""
    from hmoe.checkpoint.manifest import MANIFEST, write_manifest

    for file in ("model.safetensors", "optimizer.safetensors", "state.json", MANIFEST):
        run = work / file
        shutil.copytree(case.base / "run", run)
        for folder in (run / "checkpoints").iterdir():
            if name == "with ../":
                text = (folder / MANIFEST).read_text().replace(f'"{file}"', f'"../{folder.name}/{file}"')
                (folder / MANIFEST).write_text(text + " " * (file == MANIFEST))
                continue
            (folder / file).write_bytes(make_pickles(marker)[name])
            if file != MANIFEST:
                digest = json.loads((folder / MANIFEST).read_bytes())["digest"]
                (folder / MANIFEST).unlink()
                write_manifest(folder, digest)
        try:
            hmoe.open(run)
        except BaseException as error:
            check_user_error(error, f"{name} as {file}")
        else:  # a model is opened without its optimizer's tensors
            check(file == "optimizer.safetensors", f"is opened: {name} as {file}")
        config = yaml.safe_load((run / "config.yaml").read_text())
        check(isinstance(config, dict), "config.yaml is gone")
        check_command_line(["train", str(run)], {4}, f"{name} as {file}")


TESTS = (
    FaultTest(
        name="R13a",
        fault="hostile artefacts: pickles, auto_map, links, ../, headers, bombs, YAML tags, sizes, each once",
        promise="no code runs, nothing is written elsewhere, memory stays bounded, and the error is one line",
        unit="artefacts",
        run=plant_artefact,
        prepare=prepare_all,
        drawn=False,
    ),
    FaultTest(
        name="R13b",
        fault="Hugging Face folders with values, types, names, shapes or bytes changed",
        promise="an error in one line, or a model that answers",
        unit="folders",
        run=change_folders,
        cases=80,
        prepare=make_folders,
    ),
    FaultTest(
        name="R13c",
        fault="headers of safetensors files changed, in checkpoints (the manifest agrees) and in Hugging Face folders",
        promise="an error in one line that names the folder, or the tensors",
        unit="headers",
        run=fuzz_headers,
        cases=100,
        prepare=make_folders,
    ),
)
