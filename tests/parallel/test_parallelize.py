"""What `hmoe.parallelize` refuses, and which modules' weights it gathers together."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import hmoe
from hmoe.parallel.sharding import list_groups


class Chain(nn.Module):
    """Modules one after another, by name."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.children():
            x = part(x)
        return x


@pytest.fixture(autouse=True)
def _four_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 4)


def mesh(axes: int = 1, size: int = 4) -> Any:
    return SimpleNamespace(ndim=axes, size=lambda: size)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shard": "zero1"}, "shard = 'zero1', must be one of ddp, zero2, zero3"),
        ({"experts": "none"}, "experts = 'none', must be one of None, ddp"),
        ({"gradients": "max"}, "gradients = 'max', must be one of mean, sum"),
        ({"prefetch": -1}, "prefetch = -1, must be 0 or more blocks"),
        ({"mesh": mesh(3)}, "mesh has 3 axes, must have 1 or 2"),
        (
            {"mesh": mesh(size=2), "shard": "ddp"},
            "mesh has 2 of 4 processes; ddp needs all, nearest is zero2",
        ),
        ({"blocks": [nn.Linear(2, 2)]}, "blocks: one is no part of the model"),
    ],
)
def test_another_choice_is_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(hmoe.ConfigError, match=said) as caught:
        hmoe.parallelize(nn.Linear(2, 2), options.pop("mesh", mesh()), **options)
    assert "\n" not in str(caught.value)


def make_tied() -> nn.Module:
    model = Chain(embed=nn.Linear(3, 3), blocks=nn.ModuleList([Chain(last=nn.Linear(3, 3))]))
    model.blocks[0].last.weight = model.embed.weight  # type: ignore[index, union-attr, assignment]
    return model


def make_shared() -> nn.Module:
    part = nn.Linear(3, 3)
    return Chain(blocks=nn.ModuleList([Chain(part=part), Chain(part=part)]))


def make_scaled() -> nn.Module:
    model = Chain(inner=nn.Linear(3, 3))
    model.scale = nn.Parameter(torch.ones(()))
    return model


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (make_tied, r"embed\.weight and blocks\.0\.last\.weight are one parameter in two blocks"),
        (make_shared, r"blocks\.0\.part\.weight and blocks\.1\.part\.weight are one parameter in two blocks"),
        (make_scaled, "scale is a number; weights must have one axis or more"),
        (lambda: nn.ModuleDict({"a": nn.Linear(2, 2)}), "model: a ModuleDict has no forward pass"),
    ],
)
def test_weights_that_cannot_be_shared_are_named(make: Callable[[], nn.Module], said: str) -> None:
    with pytest.raises(hmoe.ConfigError, match=said):
        hmoe.parallelize(make(), mesh())


def test_blocks_are_what_lies_in_the_outermost_lists() -> None:
    layers = [hmoe.MoE(8, (4, 6)) for _ in range(3)]
    inner = nn.ModuleList([nn.Linear(2, 2)])
    blocks = nn.ModuleList([Chain(moe=layer, parts=Chain(inner=inner)) for layer in layers[:2]])
    model = Chain(body=Chain(blocks=blocks), last=layers[2])
    alike = [(blocks[0], "zero3"), (blocks[1], "zero3"), (model, "zero3")]
    assert list(list_groups(model, None, "zero3", None).items()) == alike
    assert list(list_groups(model, None, "zero3", "zero3").items()) == alike
    apart = list(list_groups(model, None, "ddp", "zero3").items())
    assert {layer for layer, kind in apart if kind == "zero3"} == set(layers)
    assert apart.index((layers[0], "zero3")) < apart.index((blocks[0], "ddp")) < apart.index((model, "ddp"))
    assert list(list_groups(model, [layers[0]], "ddp", None)) == [layers[0], model]
    # However they are given, parts come first.
    assert list(list_groups(model, [blocks[0], layers[0]], "ddp", None)) == [layers[0], blocks[0], model]


def test_lists_of_containers_are_lists_of_what_is_in_them() -> None:
    parts = [nn.Linear(2, 2) for _ in range(4)]
    pairs = nn.ModuleList([nn.ModuleList(parts[:2]), nn.ModuleDict({"a": parts[2], "b": parts[3]})])
    model = Chain(pairs=pairs)
    assert list(list_groups(model, None, "zero3", None)) == [*parts, model]


def test_a_layer_alone_is_one_group() -> None:
    layer = hmoe.MoE(8, (4, 6))
    assert list_groups(layer, None, "zero2", None) == {layer: "zero2"}
    assert list_groups(layer, None, "ddp", "zero3") == {layer: "zero3"}
