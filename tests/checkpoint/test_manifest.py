"""The manifest binds whatever files a checkpoint consists of."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from hmoe import CheckpointError
from hmoe.checkpoint.manifest import (
    describe_names,
    encode_json,
    list_checkpoint_steps,
    read_newest_state,
    read_state,
    verify_checkpoint,
    write_manifest,
)
from hmoe.checkpoint.store import load_checkpoint, load_newest_checkpoint, save_checkpoint
from tests.checkpoint.helpers import assert_equal, example, nothing, with_extra_file

STANDARD = ["model.safetensors", "optimizer.safetensors", "state.json"]


def saved(run: Path, extra: bool) -> Path:
    run.mkdir()
    return save_checkpoint(run, with_extra_file() if extra else example(), keep=2)


@pytest.mark.parametrize("extra", [False, True])
def test_every_file_is_listed_with_its_size_and_hash(tmp_path: Path, extra: bool) -> None:
    folder = saved(tmp_path / "run", extra)
    manifest = verify_checkpoint(folder)
    assert sorted(manifest.files) == sorted([*STANDARD, *["extra.bin"] * extra])
    for name, entry in manifest.files.items():
        content = (folder / name).read_bytes()
        assert (entry.num_bytes, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert_equal(load_checkpoint(folder), with_extra_file() if extra else example())


@pytest.mark.parametrize("name", [*STANDARD, "extra.bin", "MANIFEST.json"])
@pytest.mark.parametrize("damage", ["flipped", "shorter", "longer", "missing"])
def test_damage_of_any_file_is_found_and_the_checkpoint_before_is_used(
    tmp_path: Path, name: str, damage: str
) -> None:
    for step in (2, 3):
        save_checkpoint(tmp_path, with_extra_file(step), keep=2)
    file = tmp_path / "checkpoints" / "step-00000003" / name
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "flipped":
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
    else:
        file.write_bytes(content[:-1] if damage == "shorter" else content + b"\n")
    with pytest.raises(
        CheckpointError, match=f"step-00000003.*{name}" if damage != "missing" else "step-00000003"
    ):
        verify_checkpoint(file.parent)
    newest = load_newest_checkpoint(tmp_path, quarantine=True, say=nothing)
    assert newest is not None
    assert_equal(newest, with_extra_file(2))
    assert list_checkpoint_steps(tmp_path) == [2]


@pytest.mark.parametrize("extra", [False, True])
def test_a_file_too_many_is_found(tmp_path: Path, extra: bool) -> None:
    folder = saved(tmp_path / "run", extra)
    (folder / "more.bin").write_bytes(b"")
    with pytest.raises(
        CheckpointError,
        match=r"step-00000003: also holds more\.bin; must hold exactly what MANIFEST\.json lists",
    ):
        verify_checkpoint(folder)


def test_of_many_files_the_one_that_is_missing_is_named() -> None:
    files = [f"{part}.rank-{rank}-of-64.safetensors" for part in ("model", "optimizer") for rank in range(64)]
    assert describe_names(files, files) == ""
    assert describe_names(files[:70] + files[71:], files) == f"lacks {files[70]}"
    assert describe_names(files, files[:3]).endswith("and 121 more")
    assert describe_names(["x"], ["y"]) == "lacks y; also holds x"


def test_a_state_that_is_nested_deep_is_no_checkpoint(tmp_path: Path) -> None:
    folder = saved(tmp_path / "run", False)
    (folder / "state.json").write_bytes(b"[" * 100_000)
    (folder / "MANIFEST.json").unlink()
    write_manifest(folder, "0")
    assert read_newest_state(tmp_path / "run") is None
    with pytest.raises(CheckpointError, match="nested too deep"):
        load_checkpoint(folder)


def test_an_additional_file_changes_no_other_file(tmp_path: Path) -> None:
    plain, more = saved(tmp_path / "plain", False), saved(tmp_path / "more", True)
    for name in STANDARD:
        assert (plain / name).read_bytes() == (more / name).read_bytes()
    assert verify_checkpoint(plain).digest != verify_checkpoint(more).digest


def test_the_bytes_of_a_manifest_are_those_that_earlier_versions_wrote(tmp_path: Path) -> None:
    folder = saved(tmp_path / "run", False)
    files = {
        name: {
            "bytes": (folder / name).stat().st_size,
            "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
        }
        for name in STANDARD
    }
    tree = {"digest": verify_checkpoint(folder).digest, "files": files}
    tree["manifest_sha256"] = hashlib.sha256(
        (json.dumps(tree, sort_keys=True, indent=1) + "\n").encode()
    ).hexdigest()
    assert (folder / "MANIFEST.json").read_text() == json.dumps(tree, sort_keys=True, indent=1) + "\n"


@pytest.mark.parametrize("name", STANDARD)
def test_a_whole_manifest_that_lists_too_little_is_no_checkpoint(tmp_path: Path, name: str) -> None:
    folder = saved(tmp_path / "run", False)
    (folder / name).unlink()
    tree = json.loads((folder / "MANIFEST.json").read_bytes())
    del tree["files"][name], tree["manifest_sha256"]
    tree["manifest_sha256"] = hashlib.sha256(encode_json(tree)).hexdigest()
    (folder / "MANIFEST.json").write_bytes(encode_json(tree))
    assert name not in verify_checkpoint(folder).files
    with pytest.raises(CheckpointError, match=f"lists no {name}"):
        load_checkpoint(folder)


def test_the_newest_state_is_read_without_tensors(tmp_path: Path) -> None:
    for step in (2, 3):
        save_checkpoint(tmp_path, example(step), keep=2)
    folder = tmp_path / "checkpoints" / "step-00000003"
    (folder / "model.safetensors").unlink()
    assert read_state(folder)["step"] == 3
    shutil.copy(folder / "MANIFEST.json", folder / "state.json")
    state = read_newest_state(tmp_path)
    assert state is not None
    assert state["step"] == 2
    assert read_newest_state(tmp_path / "none") is None
