"""Expert choice, sigmoid scores with groups and a bias, noise: routers beside plain top-k and top-p."""

from typing import Any

import pytest
import torch

import hmoe
from hmoe import ConfigError
from hmoe.model.balance import count_routings, update_router_biases
from hmoe.model.noise import draw_seeded_uniform
from hmoe.model.router import RouterLayer, route_tokens
from hmoe.model.routers.top_k import compute_preference
from hmoe.model.routing import RouterState
from hmoe.model.transformer import build_transformer
from tests import oracles
from tests.model.test_transformer import config

WIDTHS = (4, 8, 12, 16)


def pairs(routing: hmoe.Routing) -> dict[tuple[int, int], torch.Tensor]:
    found = zip(routing.token_N.tolist(), routing.expert_N.tolist(), routing.gate_N, strict=True)
    return {(token, expert): gate for token, expert, gate in found}


@pytest.mark.parametrize("tokens", [0, 1, 9, 40])
@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("capacity_by", ["equal", "compute"])
def test_experts_choose_their_most_probable_tokens(tokens: int, factor: float, capacity_by: Any) -> None:
    logits = torch.randn(tokens, 4, dtype=torch.float64)
    if tokens > 5:
        logits[5] = logits[2]  # a tie goes to the earlier token
    spec = hmoe.ExpertChoice(factor, capacity_by=capacity_by)
    found = pairs(route_tokens(logits, spec, RouterState(WIDTHS)))
    probs = logits.softmax(1)
    limits = oracles.capacities(factor, 1, tokens, [1] * 4)
    if capacity_by == "compute":
        limits = [-int(-(factor * tokens / 4 * 10 / h - 1e-9) // 1) for h in WIDTHS]
    expected = {(t, i) for i, chosen in enumerate(oracles.expert_choice(probs, limits)) for t in chosen}
    assert found.keys() == expected
    for (t, i), gate in found.items():
        assert gate == probs[t, i]


def test_a_layer_of_choosing_experts_gives_gradients_and_compiles() -> None:
    torch._dynamo.reset()
    moe, x = hmoe.MoE(12, WIDTHS, hmoe.ExpertChoice(2.0)), torch.randn(21, 12)
    y, routing = moe(x)
    y.sum().backward()
    assert moe.router.weight.grad is not None
    assert moe.router.weight.grad.abs().sum() > 0
    assert routing.num_tokens_E.tolist() == [11] * 4
    compiled = torch.compile(moe, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x)[0], y, rtol=1e-4, atol=1e-6)
    torch._dynamo.reset()


def test_a_model_whose_experts_choose_cannot_generate() -> None:
    model = build_transformer(config(moe={"widths": [5, 9], "router": {"name": "expert_choice"}}), 1)
    model(torch.randint(0, 11, (2, 7)))
    with pytest.raises(ConfigError, match=r"expert_choice.*cannot generate"):
        model.new_cache(1, 5)


@pytest.mark.parametrize("k", [1, 3])
def test_sigmoid_scores_groups_and_bias_are_the_oracle(k: int) -> None:
    spec = hmoe.TopK(k, scores="sigmoid", groups=3, keep_groups=2, bias_rate=1e-3, gate_scale=2.5)
    logits = torch.randn(30, 9, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(9, dtype=torch.float64)
    found = pairs(route_tokens(logits, spec, RouterState(bias_E=bias)))
    rows = [oracles.grouped_sigmoid(row, bias.tolist(), k, 3, 2, 2.5) for row in logits]
    assert found.keys() == {(t, i) for t, row in enumerate(rows) for i in row}
    weights = torch.randn(30, 9, dtype=torch.float64)
    total = sum(gate * weights[t, i] for (t, i), gate in found.items())
    expected = sum(gate * weights[t, i] for t, row in enumerate(rows) for i, gate in row.items())
    torch.testing.assert_close(total, expected)
    grads = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (total, expected)]
    torch.testing.assert_close(*grads)


def test_a_bias_changes_the_choice_but_not_the_gates_of_a_softmax() -> None:
    logits = torch.randn(50, 4, dtype=torch.float64)
    spec = hmoe.TopK(1, bias_rate=1e-3, renormalize=False)
    found = pairs(
        route_tokens(logits, spec, RouterState(bias_E=torch.tensor([0.0, 0, 9, 0], dtype=torch.float64)))
    )
    assert found.keys() == {(t, 2) for t in range(50)}
    assert all(gate == logits.softmax(1)[t, 2] for (t, _), gate in found.items())


@pytest.mark.parametrize("bias_by", ["tokens", "compute"])
def test_the_bias_moves_against_the_load(bias_by: Any) -> None:
    layer = RouterLayer(6, WIDTHS, hmoe.TopK(1, bias_rate=0.5, bias_by=bias_by))
    layer.reset_parameters()
    layer.update_bias(torch.tensor([6, 4, 2, 0]))
    load = [6, 4, 2, 0] if bias_by == "tokens" else [24, 32, 24, 0]
    mean = sum(load) / 4
    assert layer.bias_E is not None
    assert layer.bias_E.tolist() == [0.5 * ((mean > n) - (mean < n)) for n in load]


def test_biases_balance_a_skewed_router_in_a_model() -> None:
    model = build_transformer(
        config(moe={"widths": [5, 9, 4, 7], "router": {"name": "top_k", "k": 1, "bias_rate": 0.02}}), 1
    )
    for block in model.blocks:
        torch.nn.init.normal_(block.ffn.router.weight)
    tokens = torch.randint(0, 11, (8, 30))
    shares = []
    for _ in range(150):
        counts = count_routings(model(tokens)[1], tokens.device)
        shares.append(counts.num_pairs_ZE.double() / counts.num_pairs_ZE.sum(1, keepdim=True))
        update_router_biases(model, counts.num_asked_ZE)
    assert shares[0].max() > 0.45
    assert shares[-1].max() < 0.33


def test_gumbel_noise_draws_the_second_expert_in_proportion() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64).expand(20_000, 4)
    gumbel = -torch.log(-torch.log(draw_seeded_uniform(3, (20_000, 4), torch.device("cpu"))))
    routing = route_tokens(logits, hmoe.TopK(2, gumbel=True), RouterState(gumbel_TE=gumbel))
    counts = routing.num_tokens_E / 20_000
    assert counts[0] == 1  # the first choice is the largest logit
    torch.testing.assert_close(counts[1:], logits[0, 1:].softmax(0).float(), rtol=0, atol=0.02)


def test_jitter_and_gumbel_are_for_training_and_want_a_seed() -> None:
    moe, x = hmoe.MoE(12, WIDTHS, hmoe.TopK(2, jitter=0.3, gumbel=True)), torch.randn(40, 12)
    with pytest.raises(ConfigError, match="noise_seed: missing"):
        moe(x)
    first, again, other = (moe(x, noise_seed=seed)[1].expert_N.tolist() for seed in (1, 1, 2))
    assert first == again != other
    quiet = moe.eval()(x)[1]
    assert torch.equal(quiet.logits_TE, torch.nn.functional.linear(x, moe.router.weight))
    moe.router.spec = hmoe.TopK(2, jitter=0.3)
    ratio = moe.train()(torch.ones(1, 12), noise_seed=5)[1].logits_TE / moe.router.weight.sum(1)
    assert not torch.allclose(ratio, torch.ones_like(ratio), atol=1e-3)


def test_noise_is_the_same_in_a_recomputed_block() -> None:
    from hmoe.model.attention import Sequences

    router = {"name": "top_k", "k": 2, "jitter": 0.3, "gumbel": True}
    model = build_transformer(config(moe={"widths": [5, 9, 4, 7], "router": router}), 1)
    tokens, grads = torch.randint(0, 11, (2, 9)), []
    for again in (False, True):
        model.activation_checkpointing = again
        model.zero_grad()
        model(tokens, context=Sequences(noise_seed=11))[0].square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, two in zip(*grads, strict=True):
        assert torch.equal(one, two)


def test_a_group_of_one_expert_and_ties() -> None:
    logits = torch.zeros(2, 4, dtype=torch.float64)
    value = compute_preference(logits.softmax(1), logits, hmoe.TopK(1, groups=4, keep_groups=2), None, None)
    assert (value > -torch.inf).tolist() == [[True, True, False, False]] * 2


def test_groups_are_kept_by_scores_not_by_logits() -> None:
    logits = torch.tensor(
        [[4.0, -9.0, 1.0, 1.0]]
    )  # sums of two: logits -5 and 2, softmax scores 0.90 and 0.09
    value = compute_preference(logits.softmax(1), logits, hmoe.TopK(1, groups=2, keep_groups=1), None, None)
    assert (value > -torch.inf).tolist() == [[True, True, False, False]]


def test_scores_that_round_to_one_are_told_apart() -> None:
    logits = torch.tensor([[20.0, 30.0, 25.0]])
    assert torch.sigmoid(logits).tolist() == [[1.0, 1.0, 1.0]]
    assert route_tokens(logits, hmoe.TopK(1, scores="sigmoid")).expert_N.tolist() == [1]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: hmoe.TopK(2, groups=4), "give both"),
        (lambda: hmoe.TopK(2, groups=2, keep_groups=3), "keep_groups at most groups"),
        (
            lambda: RouterLayer(3, 9, hmoe.TopK(2, groups=2, keep_groups=1)),
            "must divide the number of experts, 9",
        ),
        (lambda: RouterLayer(3, 8, hmoe.TopK(3, groups=4, keep_groups=1)), "must hold at least k = 3"),
        (lambda: hmoe.TopK(2, bias_by="compute"), "bias_by has no effect while bias_rate is 0"),
        (lambda: hmoe.TopK(1, gumbel=True), "no second choice"),
        (lambda: hmoe.TopK(2, scores="tanh"), "must be one of softmax, sigmoid"),  # type: ignore[arg-type]
        (lambda: hmoe.TopK(2, jitter=1.5), "jitter = 1.5"),
        (lambda: hmoe.ExpertChoice(0), "capacity_factor = 0"),
        (lambda: RouterLayer(3, 4, hmoe.ExpertChoice(5.0)), "at most the number of experts, 4"),
        (lambda: hmoe.ExpertChoice(capacity_by="width"), "must be one of equal, compute"),  # type: ignore[arg-type]
    ],
)
def test_specs_that_cannot_work(make: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


def test_scores_that_underflow_are_no_nan() -> None:
    logits = torch.full((3, 4), -240.0)
    routing = route_tokens(logits, hmoe.TopK(2, scores="sigmoid"))
    assert routing.gate_N.isfinite().all()
    assert routing.probs_TE.isfinite().all()


def test_a_bias_wants_a_count_for_each_expert() -> None:
    layer = RouterLayer(6, WIDTHS, hmoe.TopK(1, bias_rate=0.5))
    for router, counts in ((layer, 3), (RouterLayer(6, WIDTHS, hmoe.TopK(1)), 4)):
        with pytest.raises(ConfigError, match="update_bias: "):
            router.update_bias(torch.zeros(counts))
