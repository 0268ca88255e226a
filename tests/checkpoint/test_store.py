import random
import shutil
from pathlib import Path

import pytest
import torch

from hmoe import CheckpointError, ConfigError
from hmoe.checkpoint import store as checkpoint
from hmoe.checkpoint.store import Checkpoint
from hmoe.runs.open_run import open_run

STATE = {"step": 3, "counts": {"tokens": 7}}


def example(step: int = 3, seed: int = 0) -> Checkpoint:
    generator = torch.Generator().manual_seed(seed)
    model = {"a.weight": torch.randn(4, 5, generator=generator), "b": torch.randn(3, generator=generator).bfloat16()}
    optimizer = {"a.weight.exp_avg": torch.randn(4, 5, generator=generator), "a.weight.step": torch.tensor(3.0)}
    return Checkpoint(step, model, optimizer, {**STATE, "step": step})


def nothing(text: str) -> None:
    pass


def assert_equal(a: Checkpoint, b: Checkpoint) -> None:
    assert a.step == b.step
    assert a.state == b.state
    for one, two in ((a.model, b.model), (a.optimizer, b.optimizer)):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[k], two[k]) and one[k].dtype == two[k].dtype for k in one)


def test_round_trip_is_exact_and_bytes_depend_on_the_content_only(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        checkpoint.save(tmp_path / name, example(), keep=2)
    loaded = checkpoint.latest(tmp_path / "x", quarantine=True, say=nothing)
    assert loaded is not None
    assert_equal(loaded, example())
    folders = [tmp_path / name / "checkpoints" / "step-00000003" for name in ("x", "y")]
    for file in sorted(folders[0].iterdir()):
        assert file.read_bytes() == (folders[1] / file.name).read_bytes()


def test_only_the_newest_are_kept_and_nothing_else_is_left(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        checkpoint.save(tmp_path, example(step), keep=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000003", "step-00000010"]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path, quarantine=True, say=nothing) is None


def test_a_bit_flip_anywhere_is_found_and_the_one_before_is_used(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, example(step, seed=step), keep=2)
    newest = tmp_path / "checkpoints" / "step-00000002"
    rng = random.Random(0)
    for file in sorted(newest.iterdir()):
        good = file.read_bytes()
        for place in {0, len(good) - 1, *(rng.randrange(len(good)) for _ in range(25))}:
            bad = bytearray(good)
            bad[place] ^= 1 << rng.randrange(8)
            file.write_bytes(bad)
            with pytest.raises(CheckpointError):
                checkpoint.read(newest)
            file.write_bytes(good[:place])
            with pytest.raises(CheckpointError):
                checkpoint.read(newest)
        file.write_bytes(good)
    said: list[str] = []
    (newest / "model.safetensors").write_bytes(b"")
    loaded = checkpoint.latest(tmp_path, quarantine=True, say=said.append)
    assert loaded is not None
    assert_equal(loaded, example(1, seed=1))
    assert "step-00000002/model.safetensors" in said[0]
    assert "falling back" in said[0]
    assert (tmp_path / "checkpoints" / "step-00000002.corrupt").is_dir()


@pytest.mark.parametrize("damage", ["missing", "extra", "swapped", "renamed", "pickle", "unreadable manifest"])
def test_other_damage_is_found(tmp_path: Path, damage: str) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, example(step, seed=step), keep=2)
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
        checkpoint.read(new)


def test_a_published_checkpoint_is_never_rewritten(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, example(), keep=2)
    with pytest.raises(CheckpointError, match="never rewritten"):
        checkpoint.save(tmp_path, example(seed=1), keep=2)
    assert_equal(checkpoint.read(tmp_path / "checkpoints" / "step-00000003"), example())
    (tmp_path / "checkpoints" / "step-00000003" / ".DS_Store").write_bytes(b"x")
    checkpoint.read(tmp_path / "checkpoints" / "step-00000003")


def test_when_none_can_be_trusted_it_says_so_now_and_later(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, example(), keep=2)
    (tmp_path / "checkpoints" / "step-00000003" / "state.json").write_bytes(b"{}")
    for _ in range(2):  # the second time it is set aside already
        with pytest.raises(CheckpointError, match="no checkpoint can be trusted"):
            checkpoint.latest(tmp_path, quarantine=True, say=nothing)


def test_reading_only_renames_nothing(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, example(), keep=2)
    (tmp_path / "checkpoints" / "step-00000003" / "state.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError):
        checkpoint.latest(tmp_path, quarantine=False, say=nothing)
    assert (tmp_path / "checkpoints" / "step-00000003").is_dir()


def test_a_failed_write_leaves_the_old_one_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, example(1), keep=2)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hmoe.checkpoint.store.save_file", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*bytes free.*intact"):
        checkpoint.save(tmp_path, example(2), keep=2)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_everything_is_flushed_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Power loss cannot be tested; the order of fsync and rename can."""
    order: list[str] = []
    monkeypatch.setattr("hmoe.checkpoint.store.fsync", lambda path: order.append(f"fsync {path.name}"))
    real = Path.rename
    monkeypatch.setattr(Path, "rename", lambda self, to: (order.append("rename"), real(self, to))[1])
    checkpoint.save(tmp_path, example(), keep=2)
    assert order == [
        *(f"fsync {name}" for name in ("model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json")),
        "fsync .step-00000003.tmp",
        "rename",
        "fsync checkpoints",
    ]


def test_digest_does_not_depend_on_order_but_on_every_name_and_value() -> None:
    a = example()
    shuffled = Checkpoint(a.step, dict(reversed(a.model.items())), a.optimizer, a.state)
    assert checkpoint.digest(shuffled) == checkpoint.digest(a)
    renamed = Checkpoint(a.step, {"c": a.model["b"], "a.weight": a.model["a.weight"]}, a.optimizer, a.state)
    assert len({checkpoint.digest(c) for c in (a, renamed, example(seed=1), example(step=4))}) == 4


def test_a_checkpoint_of_another_model_is_refused() -> None:
    model = torch.nn.ParameterDict({"b": torch.nn.Parameter(torch.zeros(4))})
    with pytest.raises(CheckpointError, match=r"a\.weight has shape|b has shape"):
        checkpoint.restore(example(), model)


def test_every_moment_is_restored_onto_its_parameters_device() -> None:
    """Fused AdamW refuses a `step` on the CPU beside parameters on a GPU; `meta` stands for one."""
    with torch.device("meta"):
        model = torch.nn.Linear(5, 4)
    parameters = {"weight": torch.zeros(4, 5), "bias": torch.zeros(4)}
    moments = {f"{name}.{key}": torch.ones(()) if key == "step" else torch.zeros_like(value)
               for name, value in parameters.items() for key in ("step", "exp_avg", "exp_avg_sq")}  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters())
    checkpoint.restore(Checkpoint(1, parameters, moments, {"step": 1}), model, optimizer)
    devices = {moment.device.type for state in optimizer.state.values() for moment in state.values()}
    assert len(optimizer.state) == 2
    assert devices == {"meta"}


def test_what_is_restored_lies_in_aligned_memory(tmp_path: Path) -> None:
    """A matrix product's last bit may depend on it; safetensors puts one tensor right behind the other."""
    checkpoint.save(tmp_path, example(), keep=2)
    loaded = checkpoint.latest(tmp_path, quarantine=False, say=nothing)
    assert loaded is not None
    assert any(tensor.data_ptr() % 64 for tensor in (*loaded.model.values(), *loaded.optimizer.values()))
    model = torch.nn.Module()
    model.a = torch.nn.Linear(5, 4, bias=False)
    model.b = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW(model.parameters())
    checkpoint.restore(loaded, model, optimizer)
    moments = [moment for state in optimizer.state.values() for moment in state.values()]
    assert len(moments) == 2
    assert not any(tensor.data_ptr() % 64 for tensor in (*model.parameters(), *moments))


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.yaml"):
        open_run(tmp_path, nothing)


def test_the_package_never_imports_pickle() -> None:
    source = Path(checkpoint.__file__).parent
    for file in source.rglob("*.py"):
        text = file.read_text()
        assert "import pickle" not in text
        assert "torch.load" not in text
        assert "torch.save" not in text
