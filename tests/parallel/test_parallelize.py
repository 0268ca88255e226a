"""What `hmoe.parallelize` refuses, and which modules' weights it gathers together."""

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

import hmoe
from hmoe.parallel.sharding import list_groups


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shard": "zero1"}, "shard = 'zero1', must be one of ddp, zero2, zero3"),
        ({"experts": "none"}, "experts = 'none', must be one of None, ddp"),
        ({"gradients": "max"}, "gradients = 'max', must be one of mean, sum"),
        ({"axes": 3}, "mesh has 3 axes, must have 1 or 2"),
    ],
)
def test_another_choice_is_one_line(options: dict[str, Any], said: str) -> None:
    mesh: Any = SimpleNamespace(ndim=options.pop("axes", 1))
    with pytest.raises(hmoe.ConfigError, match=said) as caught:
        hmoe.parallelize(nn.Linear(2, 2), mesh, **options)
    assert "\n" not in str(caught.value)


def test_blocks_are_what_lies_in_the_outermost_lists() -> None:
    layers = [hmoe.MoE(8, (4, 6)) for _ in range(3)]
    inner = nn.ModuleList([nn.Linear(2, 2)])
    blocks = nn.ModuleList([nn.ModuleDict({"moe": layer, "parts": inner}) for layer in layers[:2]])
    model = nn.ModuleDict({"body": nn.ModuleDict({"blocks": blocks}), "last": layers[2]})
    alike = list_groups(model, None, "zero3", None)
    assert alike == [(blocks[0], "zero3"), (blocks[1], "zero3"), (model, "zero3")]
    assert list_groups(model, None, "zero3", "zero3") == alike
    apart = list_groups(model, None, "ddp", "zero3")
    assert apart[:3] == [(layer, "zero3") for layer in layers]
    assert apart[3:] == [(blocks[0], "ddp"), (blocks[1], "ddp"), (model, "ddp")]
    assert list_groups(model, [layers[0]], "ddp", None) == [(layers[0], "ddp"), (model, "ddp")]


def test_a_layer_alone_is_one_group() -> None:
    layer = hmoe.MoE(8, (4, 6))
    assert list_groups(layer, None, "zero2", None) == [(layer, "zero2")]
    assert list_groups(layer, None, "ddp", "zero3") == [(layer, "zero3")]
