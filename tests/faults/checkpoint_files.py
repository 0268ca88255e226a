"""Damage of a checkpoint's files: seen before a tensor is used, and training goes on from the one before it."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from hmoe import CheckpointError
from hmoe.checkpoint import store
from hmoe.checkpoint.manifest import MANIFEST, STATE_FILE, write_manifest
from hmoe.checkpoint.state import MODEL_FILE, OPTIMIZER_FILE, read_checkpoint_files
from tests.conftest import TINY, tiny
from tests.faults.campaign import Case, FaultTest, NotPossibleError, check
from tests.faults.mutations import check_command_line, check_user_error, flip_bit, limit_memory
from tests.faults.works import finish, make_shared_run
from tests.train.helpers import SMALL, digests, run

_FLIPS = 20
_FILES = (MODEL_FILE, OPTIMIZER_FILE, STATE_FILE, MANIFEST)
_OPTIONS = ("train.eval_every=2", "train.keep=3")
_MIDDLE, _END = 4, 6  # steps: where the run is interrupted, and where it ends


def train_runs(base: Path) -> None:
    """Train a run to its end, and the same run up to its middle."""
    torch.set_num_threads(1)
    run(base / "whole", *_OPTIONS)
    run(base / "part", *_OPTIONS, f"train.steps={_MIDDLE}")
    shared = make_shared_run(2, "parallel.shard=zero2", "train.steps=4")
    finish(shared, base / "shared")


def _locate(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step-{step:08d}"


def flip_bits(case: Case) -> int:
    """Flip a bit of a checkpoint, twenty times; each must be seen before anything of it is read."""
    rng = case.draw()
    shutil.copytree(case.base / "part", case.folder / "run")
    folder = _locate(case.folder / "run", _MIDDLE)
    read: list[Path] = []
    original = read_checkpoint_files
    store.read_checkpoint_files = lambda place, *rest: (read.append(place), original(place, *rest))[1]  # type: ignore
    for number in range(_FLIPS):
        file = folder / rng.choice(_FILES)
        good = file.read_bytes()
        bad, words = flip_bit(rng, good)
        file.write_bytes(bad)
        _check_refused(lambda: store.load_checkpoint(folder), f"{file.name}: {words}", file.name)
        check(not read, f"{read} is read before it is verified, with {file.name}: {words}")
        if number == 0:
            _check_fall_back(case.folder / "run", f"{file.name}: {words}")
            check(read, "the checkpoint before it is read unseen, so that nothing would be seen")
            read.clear()
        file.write_bytes(good)
    check(store.load_checkpoint(folder).step == _MIDDLE, "the good checkpoint no longer loads")
    return _FLIPS


def flip_shared_bits(case: Case) -> int:
    """Flip a bit of a checkpoint that two processes wrote, twenty times; each must be seen before it is loaded."""
    rng = case.draw()
    shutil.copytree(case.base / "shared", case.folder / "run")
    folder = _locate(case.folder / "run", 4)
    names = sorted(path.name for path in folder.iterdir())
    check(len(names) == 6, f"holds {names}")
    for _ in range(_FLIPS):
        file = folder / rng.choice(names)
        good = file.read_bytes()
        bad, words = flip_bit(rng, good)
        file.write_bytes(bad)
        _check_refused(lambda: store.load_checkpoint(folder), f"{file.name}: {words}", file.name)
        file.write_bytes(good)
    check(store.load_checkpoint(folder).step == 4, "the good checkpoint no longer loads")
    return _FLIPS


def _check_refused(load: Callable[[], object], words: str, name: str) -> None:
    """Check that a checkpoint is refused by an error that names it and its file."""
    try:
        load()
    except Exception as error:
        check_user_error(error, words)
        check(isinstance(error, CheckpointError), f"{type(error).__name__} ({error}) for {words}")
        check(name in str(error), f"the error does not name {name}: {error}; for {words}")
    else:
        raise AssertionError(f"is loaded as if nothing were wrong: {words}")


def _check_fall_back(folder: Path, words: str) -> None:
    told: list[str] = []
    loaded = store.load_newest_checkpoint(folder, quarantine=False, say=told.append)
    check(
        loaded is not None and loaded.step == _MIDDLE - 2,
        f"falls back to {loaded and loaded.step} for {words}",
    )
    check(len(told) == 1 and "falling back" in told[0], f"says {told} for {words}")
    check(_locate(folder, _MIDDLE).is_dir(), f"reading renames the checkpoint for {words}")


def _truncate(rng: random.Random, folder: Path, older: Path) -> str:
    file = folder / rng.choice(_FILES)
    length = rng.randrange(file.stat().st_size)
    os.truncate(file, length)
    return f"{file.name} cut to {length} bytes"


def _empty(rng: random.Random, folder: Path, older: Path) -> str:
    file = folder / rng.choice(_FILES)
    file.write_bytes(b"")
    return f"{file.name} emptied"


def _remove(rng: random.Random, folder: Path, older: Path) -> str:
    file = folder / rng.choice(_FILES)
    file.unlink()
    return f"{file.name} removed"


def _add(rng: random.Random, folder: Path, older: Path) -> str:
    name = rng.choice(
        ("model.rank-0-of-2.safetensors", "more.bin", "state.json~", "model.safetensors.1", "naïve")
    )
    (folder / name).write_bytes(rng.randbytes(rng.randrange(3)))
    return f"{name} added"


def _swap(rng: random.Random, folder: Path, older: Path) -> str:
    name = rng.choice(_FILES)
    shutil.copy(older / name, folder / name)
    return f"{name} of an older step"


def _swap_with_manifest(rng: random.Random, folder: Path, older: Path) -> str:
    """Put an older file in its place, and make the manifest agree: only the digest of the state differs."""
    name = rng.choice((MODEL_FILE, OPTIMIZER_FILE, STATE_FILE))
    shutil.copy(older / name, folder / name)
    _rewrite_manifest(folder)
    return f"{name} of an older step, with a manifest that agrees"


def _rewrite_manifest(folder: Path) -> None:
    digest = json.loads((folder / MANIFEST).read_bytes())["digest"]
    (folder / MANIFEST).unlink()
    write_manifest(folder, digest)


def _edit_with_manifest(rng: random.Random, folder: Path, older: Path) -> str:
    """Flip a bit of the tensors or edit the state, and make the manifest agree."""
    file = folder / rng.choice((MODEL_FILE, OPTIMIZER_FILE, STATE_FILE))
    good = file.read_bytes()
    if file.name == STATE_FILE:
        bad, words = good.replace(f'"step": {_MIDDLE}'.encode(), b'"step": 3'), "another step"
    else:
        data = 8 + int.from_bytes(good[:8], "little")
        changed, words = flip_bit(rng, good[data:])
        bad = good[:data] + changed
    check(bad != good, f"{file.name} is not changed")
    file.write_bytes(bad)
    _rewrite_manifest(folder)
    return f"{file.name}: {words}, with a manifest that agrees"


def _put_pickle(rng: random.Random, folder: Path, older: Path) -> str:
    file = folder / rng.choice((MODEL_FILE, OPTIMIZER_FILE))
    torch.save({"blocks.0.norm": torch.ones(3)}, file)
    agrees = rng.random() < 0.5
    if agrees:
        _rewrite_manifest(folder)
    return f"{file.name} is a pickle, manifest agrees: {agrees}"


def _deny(rng: random.Random, folder: Path, older: Path) -> str:
    if os.geteuid() == 0:
        raise NotPossibleError("root may read every file")
    file = folder / rng.choice(_FILES)
    file.chmod(0)
    return f"{file.name} may not be read"


def _put_folder(rng: random.Random, folder: Path, older: Path) -> str:
    file = folder / rng.choice(_FILES)
    file.unlink()
    if rng.random() < 0.5:
        file.mkdir()
        return f"{file.name} is a folder"
    file.symlink_to("nowhere")
    return f"{file.name} is a link to nothing"


def _rename_older(rng: random.Random, folder: Path, older: Path) -> str:
    shutil.rmtree(folder)
    shutil.copytree(older, folder)
    return "an older checkpoint under the name of the newest"


_DAMAGE = (
    _truncate, _empty, _remove, _add, _swap, _swap_with_manifest, _edit_with_manifest, _put_pickle, _put_folder,
    _rename_older, _deny,
)  # fmt: skip


def damage_checkpoint(case: Case) -> int:
    """Damage the newest checkpoint, or all of them, and train on."""
    rng = case.draw()
    torch.set_num_threads(1)
    limit_memory()
    folder = case.folder / "part"
    shutil.copytree(case.base / "part", folder, symlinks=True)
    damage = _DAMAGE[case.number % (len(_DAMAGE) - (os.geteuid() == 0))]
    newest, older = _locate(folder, _MIDDLE), _locate(folder, _MIDDLE - 2)
    if case.number % 4 == 3:
        return _check_all_bad(rng, folder, damage, _locate(case.base / "whole", _END))
    words = damage(rng, newest, older)
    _check_refused(lambda: store.load_checkpoint(newest), words, newest.name)
    _check_fall_back(folder, words)
    run(folder, *_OPTIONS)
    check(newest.with_name(f"{newest.name}.corrupt").is_dir(), f"nothing is set aside after {words}")
    expected, ended = digests(case.base / "whole"), digests(folder)
    differing = [name for name in expected if expected[name] != ended.get(name)]
    check(
        not differing and ended.keys() == expected.keys(),
        f"{differing} differ from the undisturbed run after {words}",
    )
    return 1


def _check_all_bad(
    rng: random.Random, folder: Path, damage: Callable[[random.Random, Path, Path], str], other: Path
) -> int:
    """Damage every checkpoint; the run must end with exit code 4, now and later, and keep them."""
    steps = range(_MIDDLE, 0, -2)
    words = "; ".join(damage(rng, _locate(folder, step), other) for step in steps)
    held = len(list((folder / "checkpoints").iterdir()))
    command = ["train", "tiny", "--run", str(folder), *TINY, *_get_widths(), *SMALL, *_OPTIONS]
    for _ in range(2):
        check_command_line(command, {4}, f"all checkpoints bad: {words}")
    check(len(list((folder / "checkpoints").iterdir())) == held, f"checkpoints are gone after {words}")
    return 1


def _get_widths() -> list[str]:
    return [word for word in tiny("tiny") if word not in TINY]


TESTS = (
    FaultTest(
        name="R4a.ranks",
        fault="a bit of a checkpoint that two processes wrote is flipped",
        promise="it is refused with the file's name",
        unit="bit flips",
        run=flip_shared_bits,
        cases=25,
        prepare=train_runs,
    ),
    FaultTest(
        name="R4a",
        fault="a bit of a checkpoint is flipped, in each of its files alike",
        promise="it is refused with the file's name before any tensor is read, and the checkpoint before it is used",
        unit="bit flips",
        run=flip_bits,
        cases=100,
        prepare=train_runs,
    ),
    FaultTest(
        name="R4b",
        fault="files of a checkpoint cut, emptied, removed, added, swapped, edited, without root unreadable",
        promise="it is set aside, the one before it is trained on to the same bytes; none left: exit code 4",
        unit="damaged checkpoints",
        run=damage_checkpoint,
        cases=40,
        prepare=train_runs,
    ),
)
