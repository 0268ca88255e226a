import pytest
import torch

import hmoe
from hmoe.config.run import OptimConfig
from hmoe.model.transformer import build_transformer
from hmoe.train.optimizer import build_optimizer, compute_learning_rate
from tests.model.test_transformer import config as model_config


def rates(steps: range, **settings: object) -> list[float]:
    config = OptimConfig.model_validate({"lr": 1.0, **settings})
    return [compute_learning_rate(step, config) for step in steps]


def test_the_papers_schedule_is_linear_warm_up_then_constant() -> None:
    assert rates(range(6), warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_falls_from_the_peak_to_its_floor() -> None:
    values = rates(range(0, 13), schedule="cosine", warmup_steps=2, schedule_steps=10, floor=0.2)
    assert values[2] == 1.0
    assert values[6] == pytest.approx(0.6)
    assert values[10] == values[12] == pytest.approx(0.2)
    assert values[2:11] == sorted(values[2:11], reverse=True)


def test_warm_up_stable_decay() -> None:
    values = rates(range(0, 12), schedule="wsd", warmup_steps=2, schedule_steps=10, decay_steps=4, floor=0.0)
    assert values == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0])


def test_norms_embeddings_and_routers_do_not_decay_unless_asked() -> None:
    model = build_transformer(model_config(), 0)
    names = {id(p): n for n, p in model.named_parameters()}
    groups = build_optimizer(model, OptimConfig(lr=1e-3, weight_decay=0.5)).param_groups
    spared = {names[id(p)] for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    assert all("norm" in n or "router" in n or n == "embed.weight" for n in spared)
    assert {"norm.weight", "embed.weight", "blocks.0.ffn.router.weight", "blocks.1.ffn_norm.weight"} <= spared
    assert sum(len(g["params"]) for g in groups) == len(names)
    assert {
        g["weight_decay"]
        for g in build_optimizer(model, OptimConfig(lr=1e-3, weight_decay=0.5, decay_all=True)).param_groups
    } == {0.5}


def test_of_a_layer_alone_router_and_layer_embedding_do_not_decay() -> None:
    moe = hmoe.MoE(
        8,
        (4, 6),
        hmoe.TopK(2, bias_rate=0.1),
        hyper=hmoe.Hyper(3),
        shared=2,
        zero=hmoe.ZeroExperts(constant=1),
    )
    names = {id(p): n for n, p in moe.named_parameters()}
    groups = build_optimizer(moe, OptimConfig(lr=1e-3, weight_decay=0.5)).param_groups
    spared = {names[id(p)] for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    assert spared == {"router.weight", "hyper_network.layer_embedding.weight"}
    assert "router.bias_E" not in {names[id(p)] for g in groups for p in g["params"]}


def test_the_update_is_torchs_adamw() -> None:
    a, b = (torch.nn.Linear(3, 3, bias=False) for _ in range(2))
    b.load_state_dict(a.state_dict())
    ours = build_optimizer(a, OptimConfig(lr=0.1, betas=(0.8, 0.9), weight_decay=0.3, eps=1e-4))
    plain = torch.optim.AdamW(b.parameters(), lr=0.1, betas=(0.8, 0.9), weight_decay=0.3, eps=1e-4)
    for _ in range(3):
        for model, optimizer in ((a, ours), (b, plain)):
            model(torch.ones(2, 3)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(a.weight, b.weight)
