"""Capacity and Rectify-Router against one token at a time, outputs and every gradient."""

from typing import Any

import pytest
import torch

import hmoe
from hmoe import ConfigError
from hmoe.model.capacity import accept_choices, count_capacity
from tests import oracles

WIDTHS = (5, 16, 3, 24)
DIM = 12


def layer(spec: hmoe.TopK, widths: tuple[int, ...] = WIDTHS, skew: float = 1.0) -> hmoe.MoE:
    moe = hmoe.MoE(DIM, widths, spec).double()
    torch.nn.init.normal_(moe.router.weight, std=skew)
    moe.router.weight.data[0] += 0.3  # one expert is popular, so that capacity bites
    return moe


def reference(
    moe: hmoe.MoE, x: torch.Tensor, spec: hmoe.TopK, ranks: tuple[list[int], list[int]]
) -> tuple[torch.Tensor, dict[str, int], dict[str, torch.Tensor]]:
    router = moe.router.weight.detach().clone().requires_grad_()
    experts = [tuple(w.clone().requires_grad_() for w in moe.expert(i)) for i in range(len(moe.widths))]
    assert spec.capacity_factor is not None
    capacity = oracles.capacities(
        spec.capacity_factor, spec.k, len(x), list(moe.widths), spec.capacity_by, spec.min_capacity
    )
    y, slots = oracles.rectified(
        x, router, experts, k=spec.k, limits=capacity, how=spec.rectify or "", when=spec.when,  # type: ignore[arg-type]
        token_rank=ranks[0], expert_rank=ranks[1], extra=spec.local_scale == "k+1-r", by_score=spec.priority == "score",
    )  # fmt: skip
    named = {"router": router}
    named |= {f"{i}.{part}": w for i, expert in enumerate(experts) for part, w in enumerate(expert)}
    return y, slots, named


def compare(
    spec: hmoe.TopK, tokens: int, widths: tuple[int, ...] = WIDTHS, given: bool = False
) -> dict[str, int]:
    moe = layer(spec, widths)
    experts = len(widths)
    x = torch.randn(tokens, DIM, dtype=torch.float64, requires_grad=True)
    ranks = ([t * experts // tokens for t in range(tokens)], list(range(experts)))
    hints: dict[str, torch.Tensor] = {}
    if given:  # two ranks; tokens lie anywhere
        ranks = (torch.randint(0, 2, (tokens,)).tolist(), [i % 2 for i in range(experts)])
        hints = {"token_rank_T": torch.tensor(ranks[0]), "expert_rank_E": torch.tensor(ranks[1])}
    y, routing = moe(x, **hints)
    grad = torch.randn_like(y)
    (y * grad).sum().backward()
    x2 = x.detach().clone().requires_grad_()
    y2, slots, named = reference(moe, x2, spec, ranks)
    (y2 * grad).sum().backward()
    assert routing.slots is not None
    assert {name: int(value) for name, value in routing.slots._asdict().items()} == slots
    torch.testing.assert_close(y, y2, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(x.grad, x2.grad, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(moe.router.weight.grad, named.pop("router").grad, rtol=1e-10, atol=1e-11)
    for name, weight in named.items():
        i, part = map(int, name.split("."))
        expected = torch.zeros_like(weight) if weight.grad is None else weight.grad
        torch.testing.assert_close(moe.expert_grad(i)[part], expected, rtol=1e-10, atol=1e-11, msg=name)
    return slots


RULES: list[dict[str, Any]] = [
    {"rectify": "ir"},
    {"rectify": "ir", "when": "any"},
    {"rectify": "ir", "when": "fewer", "local_scale": "k+1-r"},
    {"rectify": "fr"},
    {"rectify": "fr+ir"},
    {"rectify": "fr+ir", "when": "any"},
    {"rectify": "fr+ir", "when": "any", "local_scale": "k+1-r"},
    {"rectify": "fr+ir", "when": "fewer"},
    {"rectify": "fr+ir", "when": "fewer", "local_scale": "k+1-r"},
]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("factor", [0.4, 1.0])
def test_rectified_layers_are_the_oracle(rule: dict[str, Any], k: int, factor: float) -> None:
    slots = compare(hmoe.TopK(k, capacity_factor=factor, **rule), 23)
    assert slots["dropped"] > 0
    if "fr" not in rule["rectify"]:
        assert slots["filled"] == 0
    elif factor == 1.0:
        assert slots["filled"] > 0


@pytest.mark.parametrize("tokens", [1, 2, 37])
@pytest.mark.parametrize("priority", ["position", "score"])
@pytest.mark.parametrize("capacity_by", ["equal", "width"])
def test_sizes_priorities_and_capacities_by_width(tokens: int, priority: Any, capacity_by: Any) -> None:
    spec = hmoe.TopK(
        2, capacity_factor=0.7, priority=priority, capacity_by=capacity_by, rectify="fr+ir", when="fewer"
    )
    compare(spec, tokens)


@pytest.mark.parametrize("rectify", ["ir", "fr+ir"])
def test_given_ranks_and_equal_widths(rectify: Any) -> None:
    spec = hmoe.TopK(2, capacity_factor=0.5, rectify=rectify, when="fewer")
    compare(spec, 29, given=True)
    compare(spec, 29, widths=(7, 7, 7), given=True)
    compare(spec, 29, widths=(7, 7, 7))


def test_a_rank_without_experts_rectifies_nothing() -> None:
    spec = hmoe.TopK(1, capacity_factor=0.25, rectify="ir")
    moe, x = layer(spec), torch.randn(20, DIM, dtype=torch.float64)
    y, routing = moe(x, token_rank_T=torch.full((20,), 9), expert_rank_E=torch.zeros(4, dtype=torch.int64))
    assert routing.slots is not None
    assert routing.slots.rectified == 0
    assert int((y == 0).all(1).sum()) == int(routing.slots.dropped) > 0


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("k", [1, 2])
def test_without_rectification_dropped_tokens_get_less_or_nothing(k: int, renormalize: bool) -> None:
    """Switch (k = 1, raw gates) and GShard (renormalised over the experts that took the token)."""
    spec = hmoe.TopK(k, capacity_factor=0.5, renormalize=renormalize)
    moe, x = layer(spec), torch.randn(21, DIM, dtype=torch.float64)
    y, routing = moe(x)
    logits = x @ moe.router.weight.T
    choices = [oracles.chosen(row, k) for row in logits]
    probs = torch.stack([oracles.probabilities(row) for row in logits])
    kept = oracles.with_capacity(probs, choices, oracles.capacities(0.5, k, 21, list(WIDTHS)))
    for t in range(21):
        taken = [i for i, ok in zip(choices[t], kept[t], strict=True) if ok]
        total = sum(probs[t, i].item() for i in taken) if renormalize else 1.0
        parts = [probs[t, i] / total * oracles.expert(x[t], moe.expert(i)) for i in taken]
        torch.testing.assert_close(y[t], sum(parts, torch.zeros(DIM, dtype=torch.float64)))
    assert routing.slots is not None
    assert int(routing.slots.dropped) == sum(not ok for row in kept for ok in row) > 0
    assert routing.load_E.tolist() == [
        sum(i in row for row in choices) for i in range(4)
    ]  # losses see what was asked


@pytest.mark.parametrize("k", [1, 2, 3])
def test_straight_through_gates_are_divided_by_a_constant(k: int) -> None:
    """What Rectify-Router is compared with; without a capacity as with more than enough of it."""
    assert compare(hmoe.TopK(k, capacity_factor=0.5, straight_through=True), 21)["dropped"] > 0
    x, gradients = torch.randn(21, DIM, dtype=torch.float64), []
    moe = layer(hmoe.TopK(k, capacity_factor=4.0, straight_through=True))
    for spec in (moe.router.spec, hmoe.TopK(k, straight_through=True), hmoe.TopK(k)):
        moe.router.spec = spec
        moe.zero_grad()
        (moe(x)[0] ** 2).sum().backward()
        assert moe.router.weight.grad is not None
        gradients.append(moe.router.weight.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-12, atol=1e-12)
    assert (gradients[2] - gradients[1]).norm() > 0.01 * gradients[1].norm()
    assert k > 1 or gradients[2].norm() < 1e-12  # the gate of a single expert is 1, whatever the router says


def test_losses_balance_what_was_asked_not_what_was_taken() -> None:
    moe, x = layer(hmoe.TopK(2, capacity_factor=0.5)), torch.randn(21, DIM, dtype=torch.float64)
    routing = moe(x)[1]
    choices = [oracles.chosen(row, 2) for row in (x @ moe.router.weight.T).detach()]
    assert routing.num_tokens_E.sum() < 42
    torch.testing.assert_close(hmoe.load_balance(routing), oracles.load_balance(choices, routing.probs_TE))


def test_enough_capacity_drops_nothing_and_changes_nothing() -> None:
    x = torch.randn(30, DIM, dtype=torch.float64)
    moe = layer(hmoe.TopK(2, capacity_factor=4.0))
    y, routing = moe(x)
    assert routing.slots is not None
    assert routing.slots.dropped == 0
    moe.router.spec = hmoe.TopK(2)
    torch.testing.assert_close(moe(x)[0], y, rtol=1e-12, atol=1e-12)


def test_evaluation_has_its_own_factor() -> None:
    moe, x = (
        layer(hmoe.TopK(1, capacity_factor=0.25, eval_capacity_factor=4.0)),
        torch.randn(20, DIM).double(),
    )
    training = moe(x)[1].slots
    evaluation = moe.eval()(x)[1].slots
    assert training is not None
    assert evaluation is not None
    assert training.dropped > 0
    assert evaluation.dropped == 0


def test_first_choices_come_before_second_ones() -> None:
    order = torch.tensor([[0, 1], [1, 0], [0, 1], [1, 2]])
    kept = accept_choices(order, torch.tensor([2, 2, 1]), torch.arange(4))
    assert kept.tolist() == [[True, False], [True, False], [True, False], [True, True]]
    kept = accept_choices(order, torch.tensor([1, 1, 1]), torch.tensor([3, 2, 1, 0]))  # the last token first
    assert kept.tolist() == [[False, False], [False, False], [True, False], [True, True]]


def test_limits() -> None:
    assert (
        count_capacity(
            hmoe.TopK(2, capacity_factor=1.25), 16, (1, 1, 1, 1), True, torch.device("cpu")
        ).tolist()
        == [10] * 4
    )
    assert (
        count_capacity(
            hmoe.TopK(1, capacity_factor=1.0, min_capacity=4), 8, (1, 1, 1, 1), True, torch.device("cpu")
        ).tolist()
        == [4] * 4
    )
    assert count_capacity(
        hmoe.TopK(1, capacity_factor=1.0, capacity_by="width"), 100, (9, 11, 30), True, torch.device("cpu")
    ).tolist() == [
        18,
        22,
        60,
    ]
    assert (
        count_capacity(hmoe.TopK(2, capacity_factor=0.7), 10, (1,) * 7, True, torch.device("cpu")).tolist()
        == [2] * 7
    )  # 2.0000000000000004 in floats


def test_probabilities_that_underflow_are_no_nan() -> None:
    spec = hmoe.TopK(2, capacity_factor=0.5, rectify="fr+ir", when="fewer")
    moe, x = layer(spec, skew=3000.0).float(), torch.randn(40, DIM)
    y, _ = moe(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert moe.router.weight.grad is not None
    assert moe.router.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    "spec", [hmoe.TopK(2, capacity_factor=0.5), hmoe.TopK(1, capacity_factor=1.0, rectify="fr+ir")]
)
def test_capacity_compiles_as_one_graph(spec: hmoe.TopK) -> None:
    torch._dynamo.reset()
    moe = layer(spec).float()
    compiled = torch.compile(moe, fullgraph=True, backend="aot_eager")
    for tokens in (20, 33):
        x = torch.randn(tokens, DIM)
        torch.testing.assert_close(compiled(x)[0], moe(x)[0], rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rectify": "ir"}, "rectify has no effect without capacity_factor"),
        ({"priority": "score"}, "priority has no effect without capacity_factor"),
        ({"capacity_factor": 0}, "capacity_factor = 0, must be above 0"),
        ({"capacity_factor": 1.0, "when": "any"}, "when has no effect unless rectify"),
        ({"capacity_factor": 1.0, "rectify": "fr", "ranks": 2}, "ranks has no effect unless rectify"),
        ({"gumbel": "no"}, "router.gumbel = 'no', must be true or false"),
        ({"straight_through": True, "renormalize": False}, "straight_through has no effect on raw gates"),
        (
            {"capacity_factor": 1.0, "rectify": "ir", "straight_through": True},
            "straight_through has no effect with rect",
        ),
        (
            {"capacity_factor": 1.0, "rectify": "ir", "renormalize": False},
            "renormalize has no effect with rectify",
        ),
        (
            {"capacity_factor": 1.0, "rectify": "ir", "local_scale": "k+1-r"},
            "local_scale has no effect with when = all",
        ),
        ({"capacity_factor": 1.0, "rectify": "both"}, "must be one of null, ir, fr, fr"),
        ({"capacity_factor": 1.0, "min_capacity": -1}, "min_capacity = -1"),
        ({"capacity_factor": True}, "capacity_factor = True"),
    ],
)
def test_options_without_effect_are_errors(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        hmoe.TopK(2, **options)


def test_what_depends_on_the_experts_is_checked_with_them() -> None:
    with pytest.raises(ConfigError, match="fills in with one more"):
        hmoe.MoE(DIM, (3, 3), hmoe.TopK(2, capacity_factor=1.0, rectify="fr"))
    with pytest.raises(ConfigError, match=r"router\.ranks = 5"):
        hmoe.MoE(DIM, WIDTHS, hmoe.TopK(1, capacity_factor=1.0, rectify="ir", ranks=5))
    moe = hmoe.MoE(DIM, WIDTHS, hmoe.TopK(1, capacity_factor=1.0, rectify="ir"))
    with pytest.raises(ConfigError, match=r"token_rank_T: its shape is \(3,\), must be \(5,\)"):
        moe(torch.randn(5, DIM), token_rank_T=torch.zeros(3))
    with pytest.raises(ConfigError, match="have no effect unless rectify"):
        hmoe.MoE(DIM, WIDTHS)(torch.randn(5, DIM), expert_rank_E=torch.zeros(4))
