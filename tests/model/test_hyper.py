"""HyperExperts: those generated for each token by the oracle, how often they are, where they start, their size."""

from typing import Any

import pytest
import torch

import hmoe
from hmoe import ConfigError
from hmoe.model.hyper import HyperNetwork, find_distinct_selections, find_selected
from hmoe.model.transformer import build_transformer
from tests import oracles
from tests.model.test_moe_parts import DIM, SPECS, draw_x_and_grad, make_layer, take_out
from tests.model.test_transformer import config


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_hyper_experts_are_those_generated_for_each_token(spec: Any) -> None:
    """Generated once per selection here, once per token there; every gradient by name."""
    moe = make_layer(spec, hyper=hmoe.Hyper(dim=7, embedding=6, hidden=9, layer_embedding=4))
    x, grad = draw_x_and_grad()
    y, routing = moe(x)
    (y * grad).sum().backward()
    assert moe.hyper is not None
    assert moe.hyper_network is not None
    named = {
        name: p.detach().clone().requires_grad_()
        for name, p in moe.named_parameters()
        if name.startswith("hyper")
    }
    weights = {name.split(".", 1)[1].removeprefix("heads."): p for name, p in named.items()}
    weights["layer_embedding"] = weights.pop("layer_embedding.weight")[0]
    plain = take_out(make_layer(spec), "hyper")
    plain.load_state_dict({k: v for k, v in moe.state_dict().items() if not k.startswith("hyper")})
    x2 = x.detach().clone().requires_grad_()
    y2, _ = plain(x2)
    chosen: list[set[int]] = [set() for _ in x]
    for token, expert in zip(routing.token_N.tolist(), routing.expert_N.tolist(), strict=True):
        chosen[token].add(expert)
    more = [
        oracles.hyper_expert(x2[t], [i for i in range(4) if i not in chosen[t]], weights)
        for t in range(len(x2))
    ]
    y2 = y2 + torch.stack(more)
    (y2 * grad).sum().backward()
    torch.testing.assert_close(y, y2, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(x.grad, x2.grad, rtol=1e-9, atol=1e-11)
    for name, parameter in moe.named_parameters():
        expected = named[name].grad if name in named else plain.get_parameter(name).grad
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-10, msg=name)


def test_weights_are_generated_once_per_selection(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    forward = HyperNetwork.forward

    def count(self: HyperNetwork, selection_UH: torch.Tensor, layer: int) -> Any:
        seen.append(len(selection_UH))
        return forward(self, selection_UH, layer)

    monkeypatch.setattr(HyperNetwork, "forward", count)
    make_layer(hmoe.TopK(1), hyper=hmoe.Hyper(dim=3))(torch.randn(500, DIM, dtype=torch.float64))
    assert seen[0] <= 4


def test_selections_of_many_experts() -> None:
    for experts in (8, 70):
        moe = hmoe.MoE(DIM, (2,) * experts, hmoe.TopK(3))
        _, routing = moe(torch.randn(40, DIM))
        sets, which = find_distinct_selections(find_selected(routing))
        expected = torch.zeros(40, experts, dtype=torch.bool)
        expected[routing.token_N, routing.expert_N] = True
        assert torch.equal(sets[which], expected)
        assert len(sets.unique(dim=0)) == len(sets)


def test_a_hyper_layer_starts_near_the_plain_one_or_exactly_on_it() -> None:
    x = torch.randn(64, 768)
    for init, bound in (("paper", 2e-3), ("zero", 0.0)):
        torch.manual_seed(0)
        moe = hmoe.MoE(768, (64, 96), hmoe.TopK(1), hyper=hmoe.Hyper(init=init))  # type: ignore[arg-type]
        y = moe(x)[0]
        plain = take_out(moe, "hyper")(x)[0]
        assert (y - plain).abs().max() <= bound
        assert ((y - plain).abs().max() > 0) == (init == "paper")


def test_the_published_size() -> None:
    """Switch-base-8: 6 + 6 MoE layers of width 768, a hypernetwork each for encoder and decoder: 26.0M."""
    spec = hmoe.Hyper()
    assert spec.network_parameters(768, 0) == 12_806_336
    assert round((2 * spec.network_parameters(768, 6) + 12 * spec.layer_parameters(8)) / 1e6, 1) == 26.0
    network = HyperNetwork(768, 6, spec)
    assert sum(p.numel() for p in network.parameters()) == spec.network_parameters(768, 6)


def test_layers_that_share_a_hypernetwork_differ_by_their_embedding() -> None:
    model = build_transformer(config(moe={"widths": [5, 9, 4], "hyper": {"dim": 5}}), 1)
    assert [block.ffn.hyper.layer for block in model.blocks] == [0, 1]
    with pytest.raises(ConfigError, match="hyper_network is missing"):
        model.blocks[0].ffn(torch.randn(2, model.config.dim))
    for alone, message in (
        (hmoe.MoE(6, (5, 9), hyper=hmoe.Hyper(dim=3)), "of its own"),
        (hmoe.MoE(6, (5, 9)), "no HyperExperts"),
    ):
        with pytest.raises(ConfigError, match=f"hyper_network has no effect, this layer has .*{message}"):
            alone(torch.randn(2, 6), hyper_network=model.hyper_network)
