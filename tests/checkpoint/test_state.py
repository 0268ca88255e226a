"""What a checkpoint holds is put back exactly, and its digest covers all of it."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hmoe import CheckpointError
from hmoe.checkpoint.state import Checkpoint, capture_state, digest_state, restore_state
from hmoe.checkpoint.store import load_newest_checkpoint, save_checkpoint
from tests.checkpoint.helpers import example, nothing


def test_digest_does_not_depend_on_order_but_on_every_name_and_value() -> None:
    a = example()
    shuffled = Checkpoint(a.step, dict(reversed(a.model.items())), a.optimizer, a.state)
    assert digest_state(shuffled) == digest_state(a)
    renamed = Checkpoint(a.step, {"c": a.model["b"], "a.weight": a.model["a.weight"]}, a.optimizer, a.state)
    assert len({digest_state(c) for c in (a, renamed, example(seed=1), example(step=4))}) == 4


def test_a_checkpoint_of_another_model_is_refused() -> None:
    model = torch.nn.ParameterDict({"b": torch.nn.Parameter(torch.zeros(4))})
    with pytest.raises(CheckpointError, match=r"a\.weight has shape|b has shape"):
        restore_state(example(), model)


def test_every_moment_is_restored_onto_its_parameters_device() -> None:
    """Fused AdamW refuses a `step` on the CPU beside parameters on a GPU; `meta` stands for one."""
    with torch.device("meta"):
        model = torch.nn.Linear(5, 4)
    parameters = {"weight": torch.zeros(4, 5), "bias": torch.zeros(4)}
    moments = {f"{name}.{key}": torch.ones(()) if key == "step" else torch.zeros_like(value)
               for name, value in parameters.items() for key in ("step", "exp_avg", "exp_avg_sq")}  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters())
    restore_state(Checkpoint(1, parameters, moments, {"step": 1}), model, optimizer)
    devices = {moment.device.type for state in optimizer.state.values() for moment in state.values()}
    assert len(optimizer.state) == 2
    assert devices == {"meta"}


def test_what_is_restored_lies_in_aligned_memory(tmp_path: Path) -> None:
    """A matrix product's last bit may depend on it; safetensors puts one tensor right behind the other."""
    save_checkpoint(tmp_path, example(), keep=2)
    loaded = load_newest_checkpoint(tmp_path, quarantine=False, say=nothing)
    assert loaded is not None
    assert any(tensor.data_ptr() % 64 for tensor in (*loaded.model.values(), *loaded.optimizer.values()))
    model = torch.nn.Module()
    model.a = torch.nn.Linear(5, 4, bias=False)
    model.b = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW(model.parameters())
    restore_state(loaded, model, optimizer)
    moments = [moment for state in optimizer.state.values() for moment in state.values()]
    assert len(moments) == 2
    assert not any(tensor.data_ptr() % 64 for tensor in (*model.parameters(), *moments))


def test_an_extra_file_has_a_name_of_its_own(tmp_path: Path) -> None:
    for name in ("state.json", "MANIFEST.json", ".hidden", "a/b", "../a", ""):
        with pytest.raises(ValueError, match="extra file"):
            save_checkpoint(tmp_path, replace(example(), extra_files={name: b""}), keep=2)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_what_is_captured_before_the_first_step_has_no_moments() -> None:
    model = torch.nn.Linear(3, 2)
    for optimizer in (None, torch.optim.AdamW(model.parameters())):
        checkpoint = capture_state(0, model, optimizer, {"data": None})
        assert checkpoint.optimizer == {}
        assert checkpoint.state == {"step": 0, "data": None}
        assert torch.equal(checkpoint.model["weight"], model.weight)


def test_tensors_are_read_when_they_are_asked_for_also_of_a_checkpoint_that_is_gone(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, example(), keep=2)
    loaded = load_newest_checkpoint(tmp_path, quarantine=False, say=nothing)
    assert loaded is not None
    shutil.rmtree(tmp_path / "checkpoints")
    assert set(loaded.model) == set(example().model)
    for name, tensor in example().model.items():
        assert loaded.model[name].data_ptr() != loaded.model[name].data_ptr()  # nothing is kept
        assert torch.equal(loaded.model[name], tensor)
    with pytest.raises(KeyError):
        loaded.model["none"]
