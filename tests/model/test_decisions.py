"""A block that is computed again in the backward pass goes by the routing of the first pass.

It does so however it rounds the second time.
"""

import functools
from typing import Any

import pytest
import torch

from hmoe.config import recipes
from hmoe.model.attention import Sequences
from hmoe.model.decisions import Decisions, recall_or_decide
from hmoe.model.router import RouterLayer
from hmoe.model.routing import RouterInputs, Routing
from hmoe.model.transformer import Transformer, build_transformer, set_check_finite
from tests.conftest import tiny

KINDS = ("tiny", "tiny-topp", "tiny-gshard", "tiny-rectify", "tiny-expert-choice", "tiny-deepseek")


def recomputed(preset: str) -> Transformer:
    model = build_transformer(recipes.read_recipe(preset, tiny(preset))[1].model, 0)
    set_check_finite(model, False)
    model.activation_checkpointing = True
    for module in model.modules():
        if isinstance(module, RouterLayer):
            torch.nn.init.normal_(module.weight)
    return model


@pytest.mark.parametrize("preset", KINDS)
def test_the_second_pass_routes_as_the_first(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recomputed logits are other ones altogether; without the first pass's decisions shapes or pairs differ."""
    model, passes = recomputed(preset), list[tuple[Any, Routing]]()
    forward = RouterLayer.forward

    def rounding(self: RouterLayer, x_TD: torch.Tensor, inputs: RouterInputs) -> Routing:
        again = any(layer is self for layer, _ in passes)
        routing = forward(self, -x_TD if again else x_TD, inputs)
        passes.append((self, routing))
        return routing

    monkeypatch.setattr(RouterLayer, "forward", rounding)
    model(torch.randint(0, 300, (2, 16)), context=Sequences(noise_seed=1))[0].square().sum().backward()
    layers = list(dict.fromkeys(layer for layer, _ in passes))
    assert len(passes) == 2 * len(layers)
    for layer in layers:
        first, second = (routing for owner, routing in passes if owner is layer)
        assert torch.equal(first.token_N, second.token_N)
        assert torch.equal(first.expert_N, second.expert_N)
        assert not torch.equal(first.logits_TE, second.logits_TE)


def test_decisions_are_recalled_in_order() -> None:
    decisions = Decisions()
    for turn in range(3):
        decisions.begin()
        assert [recall_or_decide(decisions, functools.partial(int, n + 10 * turn)) for n in (1, 2)] == [1, 2]
    assert recall_or_decide(None, lambda: 7) == 7
