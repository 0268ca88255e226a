"""Checkpoints are published whole, verified before use, and set aside when damaged."""

import errno
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hmoe import CheckpointError
from hmoe.checkpoint import store
from hmoe.checkpoint.manifest import list_checkpoint_steps, read_newest_state
from hmoe.checkpoint.store import load_checkpoint, load_newest_checkpoint, save_checkpoint
from tests.checkpoint.helpers import assert_equal, example, nothing


def test_round_trip_is_exact_and_bytes_depend_on_the_content_only(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        save_checkpoint(tmp_path / name, example(), keep=2)
    loaded = load_newest_checkpoint(tmp_path / "x", quarantine=True, say=nothing)
    assert loaded is not None
    assert_equal(loaded, example())
    folders = [tmp_path / name / "checkpoints" / "step-00000003" for name in ("x", "y")]
    for file in sorted(folders[0].iterdir()):
        assert file.read_bytes() == (folders[1] / file.name).read_bytes()


def test_only_the_newest_are_kept_and_nothing_else_is_left(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        save_checkpoint(tmp_path, example(step), keep=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000003", "step-00000010"]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_newest_checkpoint(tmp_path, quarantine=True, say=nothing) is None


def test_a_bit_flip_anywhere_is_found_and_the_one_before_is_used(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, example(step, seed=step), keep=2)
    newest = tmp_path / "checkpoints" / "step-00000002"
    rng = random.Random(0)
    for file in sorted(newest.iterdir()):
        good = file.read_bytes()
        for place in {0, len(good) - 1, *(rng.randrange(len(good)) for _ in range(25))}:
            bad = bytearray(good)
            bad[place] ^= 1 << rng.randrange(8)
            file.write_bytes(bad)
            with pytest.raises(CheckpointError):
                load_checkpoint(newest)
            file.write_bytes(good[:place])
            with pytest.raises(CheckpointError):
                load_checkpoint(newest)
        file.write_bytes(good)
    told: list[str] = []
    (newest / "model.safetensors").write_bytes(b"")
    loaded = load_newest_checkpoint(tmp_path, quarantine=True, say=told.append)
    assert loaded is not None
    assert_equal(loaded, example(1, seed=1))
    assert "step-00000002/model.safetensors" in told[0]
    assert "falling back" in told[0]
    assert (tmp_path / "checkpoints" / "step-00000002.corrupt").is_dir()


@pytest.mark.parametrize(
    "damage", ["missing", "extra", "swapped", "renamed", "pickle", "unreadable manifest"]
)
def test_other_damage_is_found(tmp_path: Path, damage: str) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, example(step, seed=step), keep=2)
    old, new = (tmp_path / "checkpoints" / f"step-0000000{step}" for step in (1, 2))
    if damage == "missing":
        (new / "state.json").unlink()
    elif damage == "extra":
        (new / "more.bin").write_bytes(b"")
    elif damage == "swapped":
        shutil.copy(old / "model.safetensors", new / "model.safetensors")
    elif damage == "renamed":
        shutil.rmtree(new)
        shutil.copytree(old, new)
    elif damage == "pickle":
        torch.save({"a": torch.ones(2)}, new / "model.safetensors")
    else:
        (new / "MANIFEST.json").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="step-00000002"):
        load_checkpoint(new)


def test_a_published_checkpoint_is_never_rewritten(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, example(), keep=2)
    with pytest.raises(CheckpointError, match="never rewritten"):
        save_checkpoint(tmp_path, example(seed=1), keep=2)
    assert_equal(load_checkpoint(tmp_path / "checkpoints" / "step-00000003"), example())
    (tmp_path / "checkpoints" / "step-00000003" / ".DS_Store").write_bytes(b"x")
    load_checkpoint(tmp_path / "checkpoints" / "step-00000003")


def test_when_none_can_be_trusted_it_says_so_now_and_later(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, example(), keep=2)
    (tmp_path / "checkpoints" / "step-00000003" / "state.json").write_bytes(b"{}")
    for _ in range(2):  # the second time it is set aside already
        with pytest.raises(CheckpointError, match="no checkpoint can be trusted"):
            load_newest_checkpoint(tmp_path, quarantine=True, say=nothing)


def test_reading_only_renames_nothing(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, example(), keep=2)
    (tmp_path / "checkpoints" / "step-00000003" / "state.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError):
        load_newest_checkpoint(tmp_path, quarantine=False, say=nothing)
    assert (tmp_path / "checkpoints" / "step-00000003").is_dir()


def test_what_a_killed_process_left_is_removed_by_who_writes_alone(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, example(3), keep=2)
    litter = tmp_path / "checkpoints" / ".step-00000002.old"
    litter.mkdir()
    load_newest_checkpoint(tmp_path, quarantine=False, say=nothing)
    assert litter.is_dir()
    load_newest_checkpoint(tmp_path, quarantine=True, say=nothing)
    assert not litter.exists()


def test_a_failed_write_leaves_the_old_one_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, example(1), keep=2)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hmoe.checkpoint.state.save_file", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*bytes free.*intact"):
        save_checkpoint(tmp_path, example(2), keep=2)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_everything_is_flushed_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Power loss cannot be tested; the order of fsync and rename can."""
    order: list[str] = []
    monkeypatch.setattr(
        "hmoe.checkpoint.store.flush_to_disk", lambda path: order.append(f"fsync {path.name}")
    )
    real = Path.rename
    monkeypatch.setattr(Path, "rename", lambda self, to: (order.append("rename"), real(self, to))[1])
    save_checkpoint(tmp_path, example(), keep=2)
    assert order == [
        *(
            f"fsync {name}"
            for name in ("model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json")
        ),
        "fsync .step-00000003.tmp",
        "rename",
        "fsync checkpoints",
    ]


def test_the_package_never_imports_pickle() -> None:
    source = Path(store.__file__).parent
    for file in source.rglob("*.py"):
        text = file.read_text()
        assert "import pickle" not in text
        assert "torch.load" not in text
        assert "torch.save" not in text


def test_a_shortage_of_handles_sets_no_checkpoint_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, example(), keep=2)

    def refuse(*_: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    for place in (
        "hmoe.checkpoint.manifest.hash_file",
        "hmoe.checkpoint.manifest.os.listdir",
        "hmoe.checkpoint.state.safe_open",
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, refuse)
            with pytest.raises(OSError, match="Too many open files"):
                load_newest_checkpoint(tmp_path, quarantine=True, say=print)
    with monkeypatch.context() as patch:
        patch.setattr("hmoe.checkpoint.manifest.hash_file", refuse)
        with pytest.raises(OSError, match="Too many open files"):
            read_newest_state(tmp_path)  # not None, which would say that there is no checkpoint
    assert list_checkpoint_steps(tmp_path) == [3]
