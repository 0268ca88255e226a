"""What a checkpoint records of where it was trained, on GPUs that are only said to be there."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hmoe import ConfigError
from hmoe.config import recipes
from hmoe.kernels import choice
from hmoe.train.environment import compare_environment, describe_environment

CONFIG = recipes.read_recipe("tiny")[1]


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, name: str, tiles: str = "h100-1") -> dict[str, Any]:
    """The environment on a GPU of that name."""
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda: SimpleNamespace(name=name, major=9, minor=0)
    )
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    monkeypatch.setattr(choice, "describe_tiles", lambda: tiles, raising=False)
    return describe_environment("cuda")


def changes(before: dict[str, Any], device: str = "cuda") -> list[str]:
    told: list[str] = []
    compare_environment({"environment": json.loads(json.dumps(before))}, CONFIG, device, told.append)
    return told


def test_a_gpu_is_known_by_its_name_what_it_can_do_and_the_kernels_tiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = pretend_gpu(monkeypatch, "NVIDIA H100")
    expected = {
        "device": "cuda",
        "gpu": "NVIDIA H100",
        "gpu_capability": "9.0",
        "gpu_bfloat16": True,
        "tiles": "h100-1",
    }
    assert {key: before[key] for key in expected} == expected
    assert changes(before) == []
    pretend_gpu(monkeypatch, "NVIDIA H200", "h200-1")
    why = "bits may differ from those of one unbroken run"
    assert changes(before) == [
        f"gpu was NVIDIA H100, is NVIDIA H200: {why}",
        f"tiles was h100-1, is h200-1: {why}",
    ]


def test_what_an_older_checkpoint_does_not_hold_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, "NVIDIA H100")
    here = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    assert changes({**here, "device": "cuda"}) == []
    assert changes(here, "cpu") == []
    with pytest.raises(ConfigError, match="the run was trained on cuda"):
        changes({**here, "device": "cuda"}, "cpu")


def test_a_cpu_is_known_by_what_its_libraries_choose_by(monkeypatch: pytest.MonkeyPatch) -> None:
    before = describe_environment("cpu")
    assert {"cpu", "cpu_bfloat16", "cpu_amx"} <= before.keys()
    assert changes(before, "cpu") == []
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert [line.split(" was")[0] for line in changes(before, "cpu")] == ["cpu"]
    assert describe_environment().keys() == {"torch", "threads"}
