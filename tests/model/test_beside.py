"""Shared and zero-computation experts, and HyperExperts: outputs, gradients and counts."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import hmoe
from hmoe import ConfigError
from hmoe.config import recipes
from hmoe.config.counts import parameters_by_part
from hmoe.config.run import RunConfig
from hmoe.model.hyper import HyperNetwork, distinct, selected
from hmoe.model.transformer import build
from tests import oracles
from tests.model.test_transformer import config

WIDTHS = (5, 16, 3, 24)
TRUE = hmoe.ZeroExperts(null=1, true_gates=True)
DIM = 12
SPECS = [hmoe.TopK(1), hmoe.TopK(2), hmoe.TopP(0.6), hmoe.TopK(2, capacity_factor=0.6), hmoe.ExpertChoice(1.0)]


def layer(spec: hmoe.TopK | hmoe.TopP | hmoe.ExpertChoice, **parts: Any) -> hmoe.MoE:
    moe = hmoe.MoE(DIM, WIDTHS, spec, **parts).double()
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return moe


def x_and_grad(tokens: int = 19) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(tokens, DIM, dtype=torch.float64, requires_grad=True), torch.randn(
        tokens, DIM, dtype=torch.float64
    )


def without(moe: hmoe.MoE, *parts: str) -> hmoe.MoE:
    """The same layer with parts taken out."""
    for part in parts:
        setattr(moe, part, None)
    return moe


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_hyper_experts_are_those_generated_for_each_token(spec: Any) -> None:
    """Generated once per selection here, once per token there; every gradient by name."""
    moe = layer(spec, hyper=hmoe.Hyper(dim=7, embedding=6, hidden=9, layer_embedding=4))
    x, grad = x_and_grad()
    y, routing = moe(x)
    (y * grad).sum().backward()
    assert moe.hyper is not None
    assert moe.hyper_network is not None
    named = {
        name: p.detach().clone().requires_grad_() for name, p in moe.named_parameters() if name.startswith("hyper")
    }
    weights = {name.split(".", 1)[1].removeprefix("heads."): p for name, p in named.items()}
    weights["layer_embedding"] = weights.pop("layer_embedding.weight")[0]
    plain = without(layer(spec), "hyper")
    plain.load_state_dict({k: v for k, v in moe.state_dict().items() if not k.startswith("hyper")})
    x2 = x.detach().clone().requires_grad_()
    y2, _ = plain(x2)
    chosen: list[set[int]] = [set() for _ in x]
    for token, expert in zip(routing.token_N.tolist(), routing.expert_N.tolist(), strict=True):
        chosen[token].add(expert)
    more = [oracles.hyper_expert(x2[t], [i for i in range(4) if i not in chosen[t]], weights) for t in range(len(x2))]
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

    def count(self: HyperNetwork, selection_UH: torch.Tensor, number: int) -> Any:
        seen.append(len(selection_UH))
        return forward(self, selection_UH, number)

    monkeypatch.setattr(HyperNetwork, "forward", count)
    layer(hmoe.TopK(1), hyper=hmoe.Hyper(dim=3))(torch.randn(500, DIM, dtype=torch.float64))
    assert seen[0] <= 4


def test_selections_of_many_experts() -> None:
    for experts in (8, 70):
        moe = hmoe.MoE(DIM, (2,) * experts, hmoe.TopK(3))
        _, routing = moe(torch.randn(40, DIM))
        sets, which = distinct(selected(routing))
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
        plain = without(moe, "hyper")(x)[0]
        assert (y - plain).abs().max() <= bound
        assert ((y - plain).abs().max() > 0) == (init == "paper")


def test_the_published_size() -> None:
    """Switch-base-8: 6 + 6 MoE layers of width 768, a hypernetwork each for encoder and decoder: 26.0M."""
    spec = hmoe.Hyper()
    assert spec.network_parameters(768, 0) == 12_806_336
    assert round((2 * spec.network_parameters(768, 6) + 12 * spec.layer_parameters(8)) / 1e6, 1) == 26.0
    network = HyperNetwork(768, 6, spec)
    assert sum(p.numel() for p in network.parameters()) == spec.network_parameters(768, 6)


@pytest.mark.parametrize("zero", [hmoe.ZeroExperts(1, 1, 2), hmoe.ZeroExperts(2), hmoe.ZeroExperts(copy=1)], ids=str)
@pytest.mark.parametrize("spec", [hmoe.TopK(3), hmoe.TopP(0.7), hmoe.TopK(2, capacity_factor=0.5)], ids=str)
def test_zero_computation_experts_are_the_oracle(zero: hmoe.ZeroExperts, spec: Any) -> None:
    moe = layer(spec, zero=zero)
    x, grad = x_and_grad()
    y, routing = moe(x)
    assert len(routing.num_tokens_E) == 4 + zero.count
    (y * grad).sum().backward()
    copy = {name: p.detach().clone().requires_grad_() for name, p in moe.named_parameters()}
    x2 = x.detach().clone().requires_grad_()
    kinds = ["null"] * zero.null + ["copy"] * zero.copy + ["constant"] * zero.constant
    experts = [[torch.split(copy[part], WIDTHS)[i] for part in ("w_gate", "w_up", "w_down")] for i in range(4)]
    rows = [torch.zeros(DIM, dtype=torch.float64) for _ in range(len(x2))]
    gates = routing.gate_N.detach()
    again = moe.router(x2)
    for token, i, gate, fixed in zip(again.token_N.tolist(), again.expert_N.tolist(), again.gate_N, gates, strict=True):
        assert gate == fixed
        if i < 4:
            w_gate, w_up, w_down = experts[i]
            out = oracles.expert(x2[token], (w_gate, w_up, w_down.T))
        else:
            number = i - 4 - zero.null - zero.copy
            own = (copy["zero.value"][number], copy["zero.mix"][number]) if kinds[i - 4] == "constant" else (None, None)
            out = oracles.zero_expert(x2[token], kinds[i - 4], *own)
        rows[token] = rows[token] + gate * out
    y2 = torch.stack(rows)
    torch.testing.assert_close(y, y2, rtol=1e-11, atol=1e-11)
    router = moe.router.weight.grad.clone() if moe.router.weight.grad is not None else None
    moe.router.weight.grad = None
    (y2 * grad).sum().backward()
    torch.testing.assert_close(x.grad, x2.grad, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(router, moe.router.weight.grad, rtol=1e-10, atol=1e-11)
    for name in ("w_gate", "w_up", "w_down", *(["zero.value", "zero.mix"] if zero.constant else [])):
        expected = copy[name].grad if copy[name].grad is not None else torch.zeros_like(copy[name])
        torch.testing.assert_close(moe.get_parameter(name).grad, expected, rtol=1e-10, atol=1e-11, msg=name)


def test_no_tokens() -> None:
    y, _ = layer(hmoe.TopK(1), zero=hmoe.ZeroExperts(1, 1, 2), shared=3, hyper=hmoe.Hyper(dim=3))(
        torch.empty(0, DIM).double()
    )
    assert y.shape == (0, DIM)


def test_gates_over_experts_that_compute() -> None:
    """AdaMoE: what null experts take is given to the others; a token with nothing else gets 0."""
    moe = layer(hmoe.TopK(3), zero=hmoe.ZeroExperts(null=3, true_gates=True))
    _, routing = moe(torch.randn(60, DIM, dtype=torch.float64))
    true_N = routing.expert_N < 4
    sums = torch.zeros(60, dtype=torch.float64).index_add(0, routing.token_N[true_N], routing.gate_N[true_N])
    some = torch.bincount(routing.token_N[true_N], minlength=60) > 0
    torch.testing.assert_close(sums, some.double())
    assert 0 < some.sum() < 60


def test_a_shared_expert_serves_every_token() -> None:
    moe = layer(hmoe.TopK(2), shared=6)
    x, _ = x_and_grad()
    y = moe(x)[0]
    assert moe.shared is not None
    dense = torch.stack([oracles.expert(row, (moe.shared.w_gate, moe.shared.w_up, moe.shared.w_down.T)) for row in x])
    torch.testing.assert_close(y - without(moe, "shared")(x)[0], dense, rtol=1e-10, atol=1e-11)


def test_width_0_costs_nothing_in_the_parameter_penalty_and_can_weigh_less_in_the_balance() -> None:
    moe = layer(hmoe.TopK(2), zero=hmoe.ZeroExperts(1, 1, balance=0.75))
    _, routing = moe(torch.randn(30, DIM, dtype=torch.float64))
    share, prob = routing.num_tokens_E.double() / 30, routing.probs_TE.mean(0)
    widths = torch.tensor(moe.routed_widths, dtype=torch.float64)
    penalty = 6 * (share * widths / widths[:4].mean() * prob).sum()
    torch.testing.assert_close(hmoe.parameter_penalty(routing, moe.routed_widths), penalty)
    weights = torch.tensor([1, 1, 1, 1, 0.75, 0.75], dtype=torch.float64)
    torch.testing.assert_close(hmoe.load_balance(routing, weights.tolist()), 6 * (share * weights * prob).sum())


PARTS: list[dict[str, Any]] = [
    {"shared": 6},
    {"zero": {"null": 1, "copy": 1, "constant": 2}},
    {"hyper": {"dim": 5, "embedding": 6, "hidden": 7, "layer_embedding": 3}},
    {"router": {"name": "top_k", "k": 2, "bias_rate": 0.1}},
]


@pytest.mark.parametrize("parts", [*PARTS, {k: v for part in PARTS for k, v in part.items()}], ids="+".join)
def test_models_have_the_parameters_that_are_counted(parts: dict[str, Any]) -> None:
    model = build(config(ffn=11, moe={"widths": [5, 9, 4], "dense_layers": [0], **parts}), 1)
    counted = parameters_by_part(model.config)
    assert sum(counted.values()) == sum(p.numel() for p in model.parameters())
    assert counted["hyper"] == sum(p.numel() for name, p in model.named_parameters() if "hyper" in name)
    networks = [name for name, module in model.named_modules() if isinstance(module, HyperNetwork)]
    assert networks == (["hyper_network"] if "hyper" in parts else [])  # one, shared by the layers
    model(torch.randint(0, 11, (2, 7)))[0].sum().backward()


def test_layers_that_share_a_hypernetwork_differ_by_their_embedding() -> None:
    model = build(config(moe={"widths": [5, 9, 4], "hyper": {"dim": 5}}), 1)
    assert [block.ffn.hyper.layer for block in model.blocks] == [0, 1]
    with pytest.raises(ConfigError, match="hyper_network is missing"):
        model.blocks[0].ffn(torch.randn(2, model.config.dim))
    for alone, said in (
        (hmoe.MoE(6, (5, 9), hyper=hmoe.Hyper(dim=3)), "of its own"),
        (hmoe.MoE(6, (5, 9)), "no HyperExperts"),
    ):
        with pytest.raises(ConfigError, match=f"hyper_network has no effect, this layer has .*{said}"):
            alone(torch.randn(2, 6), hyper_network=model.hyper_network)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (hmoe.ZeroExperts, "all 0"),
        (lambda: hmoe.ZeroExperts(null=-1), "zero.null = -1"),
        (lambda: hmoe.ZeroExperts(copy=1, true_gates=True), "null experts only"),
        (lambda: hmoe.ZeroExperts(1, balance=2), "from 0 to 1"),
        (lambda: hmoe.Hyper(dim=0), "hyper.dim = 0"),
        (lambda: hmoe.Hyper(init="ones"), "must be one of paper, zero"),  # type: ignore[arg-type]
        (lambda: hmoe.MoE(4, (3,), hmoe.ExpertChoice(), zero=hmoe.ZeroExperts(1)), "no place with expert_choice"),
        (lambda: hmoe.MoE(4, (3,), hmoe.TopK(1, bias_rate=0.1, bias_by="compute"), zero=hmoe.ZeroExperts(1)), "tokens"),
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
            lambda: recipes.load("tiny", ["model.moe.zero={copy: 1, balance: 0.5}"]),
            "balance has no effect while load_balance",
        ),
        (lambda: recipes.load("tiny-expert-choice", ["model.moe.load_balance=0.1"]), "load_balance has no effect"),
    ],
)
def test_parts_that_cannot_work(make: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


def test_recipes_hold_all_of_it() -> None:
    tree = recipes.load("tiny")[1].model_dump(mode="json")
    tree["model"]["moe"] |= {k: v for part in PARTS for k, v in part.items()}
    config_ = RunConfig.model_validate(tree)
    assert config_.model.moe is not None
    assert config_.model.moe.zero == hmoe.ZeroExperts(1, 1, 2)
    assert config_.model.moe.hyper == replace(hmoe.Hyper(), dim=5, embedding=6, hidden=7, layer_embedding=3)
