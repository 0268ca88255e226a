"""Shared experts, and all that a layer may have beside routed experts together: counts, recipes, refusals."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import hmoe
from hmoe import ConfigError
from hmoe.config import recipes
from hmoe.config.counts import count_parameters
from hmoe.config.run import RunConfig
from hmoe.model.hyper import HyperNetwork
from hmoe.model.transformer import build_transformer
from tests import oracles
from tests.model.test_transformer import config

WIDTHS = (5, 16, 3, 24)
TRUE = hmoe.ZeroExperts(null=1, true_gates=True)
DIM = 12
SPECS = [
    hmoe.TopK(1),
    hmoe.TopK(2),
    hmoe.TopP(0.6),
    hmoe.TopK(2, capacity_factor=0.6),
    hmoe.ExpertChoice(1.0),
]


def make_layer(spec: hmoe.TopK | hmoe.TopP | hmoe.ExpertChoice, **parts: Any) -> hmoe.MoE:
    moe = hmoe.MoE(DIM, WIDTHS, spec, **parts).double()
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return moe


def draw_x_and_grad(tokens: int = 19) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(tokens, DIM, dtype=torch.float64, requires_grad=True), torch.randn(
        tokens, DIM, dtype=torch.float64
    )


def take_out(moe: hmoe.MoE, *parts: str) -> hmoe.MoE:
    """The same layer with parts taken out."""
    for part in parts:
        setattr(moe, part, None)
    return moe


def test_no_tokens() -> None:
    y, _ = make_layer(hmoe.TopK(1), zero=hmoe.ZeroExperts(1, 1, 2), shared=3, hyper=hmoe.Hyper(dim=3))(
        torch.empty(0, DIM).double()
    )
    assert y.shape == (0, DIM)


def test_a_shared_expert_serves_every_token() -> None:
    moe = make_layer(hmoe.TopK(2), shared=6)
    x, _ = draw_x_and_grad()
    y = moe(x)[0]
    assert moe.shared is not None
    dense = torch.stack(
        [oracles.expert(row, (moe.shared.w_gate, moe.shared.w_up, moe.shared.w_down.T)) for row in x]
    )
    torch.testing.assert_close(y - take_out(moe, "shared")(x)[0], dense, rtol=1e-10, atol=1e-11)


PARTS: list[dict[str, Any]] = [
    {"shared": 6},
    {"zero": {"null": 1, "copy": 1, "constant": 2}},
    {"hyper": {"dim": 5, "embedding": 6, "hidden": 7, "layer_embedding": 3}},
    {"router": {"name": "top_k", "k": 2, "bias_rate": 0.1}},
]


@pytest.mark.parametrize("parts", [*PARTS, {k: v for part in PARTS for k, v in part.items()}], ids="+".join)
def test_models_have_the_parameters_that_are_counted(parts: dict[str, Any]) -> None:
    model = build_transformer(config(ffn=11, moe={"widths": [5, 9, 4], "dense_layers": [0], **parts}), 1)
    counted = count_parameters(model.config)
    assert sum(counted.values()) == sum(p.numel() for p in model.parameters())
    assert counted["hyper"] == sum(p.numel() for name, p in model.named_parameters() if "hyper" in name)
    networks = [name for name, module in model.named_modules() if isinstance(module, HyperNetwork)]
    assert networks == (["hyper_network"] if "hyper" in parts else [])  # one, shared by the layers
    model(torch.randint(0, 11, (2, 7)))[0].sum().backward()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (hmoe.ZeroExperts, "all 0"),
        (lambda: hmoe.ZeroExperts(null=-1), "zero.null = -1"),
        (lambda: hmoe.ZeroExperts(copy=1, true_gates=True), "null experts only"),
        (lambda: hmoe.ZeroExperts(1, balance=2), "from 0 to 1"),
        (lambda: hmoe.Hyper(dim=0), "hyper.dim = 0"),
        (lambda: hmoe.Hyper(init="ones"), "must be one of paper, zero"),  # type: ignore[arg-type]
        (
            lambda: hmoe.MoE(4, (3,), hmoe.ExpertChoice(), zero=hmoe.ZeroExperts(1)),
            "no place with expert_choice",
        ),
        (
            lambda: hmoe.MoE(
                4, (3,), hmoe.TopK(1, bias_rate=0.1, bias_by="compute"), zero=hmoe.ZeroExperts(1)
            ),
            "tokens",
        ),
        (lambda: hmoe.MoE(4, (3,), hmoe.TopK(1), shared=-1), "shared = -1"),
        (
            lambda: hmoe.MoE(4, (3,), hmoe.TopK(1, renormalize=False), zero=TRUE),
            "true_gates has no effect on gates that are raw",
        ),
        (lambda: hmoe.MoE(4, (3,), hmoe.TopP(0.5, renormalize=False), zero=TRUE), "true_gates has no effect"),
        (
            lambda: hmoe.MoE(4, (3,), hmoe.TopK(1, capacity_factor=1.0, rectify="ir"), zero=TRUE),
            "true_gates has no effect",
        ),
        (
            lambda: recipes.read_recipe("tiny", ["model.moe.zero={copy: 1, balance: 0.5}"]),
            "balance has no effect while load_balance",
        ),
        (
            lambda: recipes.read_recipe("tiny-expert-choice", ["model.moe.load_balance=0.1"]),
            "load_balance has no effect",
        ),
    ],
)
def test_parts_that_cannot_work(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_recipes_hold_all_of_it() -> None:
    tree = recipes.read_recipe("tiny")[1].model_dump(mode="json")
    tree["model"]["moe"] |= {k: v for part in PARTS for k, v in part.items()}
    config_ = RunConfig.model_validate(tree)
    assert config_.model.moe is not None
    assert config_.model.moe.zero == hmoe.ZeroExperts(1, 1, 2)
    assert config_.model.moe.hyper == replace(hmoe.Hyper(), dim=5, embedding=6, hidden=7, layer_embedding=3)
