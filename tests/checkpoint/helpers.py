"""Small checkpoints."""

from dataclasses import replace

import torch

from hmoe.checkpoint.state import Checkpoint

STATE = {"step": 3, "counts": {"tokens": 7}}


def example(step: int = 3, seed: int = 0) -> Checkpoint:
    generator = torch.Generator().manual_seed(seed)
    model = {
        "a.weight": torch.randn(4, 5, generator=generator),
        "b": torch.randn(3, generator=generator).bfloat16(),
    }
    optimizer = {
        "a.weight.exp_avg": torch.randn(4, 5, generator=generator),
        "a.weight.step": torch.tensor(3.0),
    }
    return Checkpoint(step, model, optimizer, {**STATE, "step": step})


def nothing(text: str) -> None:
    pass


def assert_equal(a: Checkpoint, b: Checkpoint) -> None:
    assert a.step == b.step
    assert a.state == b.state
    assert a.extra_files == b.extra_files
    for first, second in ((a.model, b.model), (a.optimizer, b.optimizer)):
        assert first.keys() == second.keys()
        assert all(torch.equal(first[k], second[k]) and first[k].dtype == second[k].dtype for k in first)


def with_extra_file(step: int = 3) -> Checkpoint:
    """A checkpoint that holds one file more than those of today."""
    return replace(example(step), extra_files={"extra.bin": bytes(range(200))})
