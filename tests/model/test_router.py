import copy

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import hmoe
from hmoe import ConfigError, TopK, TopP
from hmoe.model.router import RouterLayer, route_tokens
from hmoe.model.routing import RouterInputs, RouterState
from tests import oracles

LOGITS = st.floats(-30, 30, width=32)


def sets(logits_TE: torch.Tensor, spec: TopK | TopP) -> list[list[int]]:
    routing = route_tokens(logits_TE, spec)
    chosen: list[list[int]] = [[] for _ in logits_TE]
    for token, expert in zip(routing.token_N.tolist(), routing.expert_N.tolist(), strict=True):
        chosen[token].append(expert)
    return chosen


@given(
    rows=st.integers(1, 9).flatmap(
        lambda n: st.lists(st.lists(LOGITS, min_size=n, max_size=n), min_size=1, max_size=6)
    ),
    k=st.integers(1, 9),
    p=st.floats(1e-6, 1, exclude_min=True),
)
@settings(deadline=None)
def test_selection_is_the_oracle_and_gates_sum_to_one(rows: list[list[float]], k: int, p: float) -> None:
    logits = torch.tensor(rows, dtype=torch.float64)
    for spec in (TopK(min(k, len(rows[0]))), TopP(p)):
        limit = {"k": spec.k} if isinstance(spec, TopK) else {"p": spec.p}
        expected = [sorted(oracles.chosen(row, **limit)) for row in logits]
        assert sets(logits, spec) == expected
        routing = route_tokens(logits, spec)
        sums = torch.zeros(len(rows), dtype=torch.float64).index_add(0, routing.token_N, routing.gate_N)
        torch.testing.assert_close(sums, torch.ones_like(sums))
        assert routing.expert_N.tolist() == sorted(routing.expert_N.tolist())
        assert torch.equal(routing.num_tokens_E, torch.bincount(routing.expert_N, minlength=len(rows[0])))


def test_ties_go_to_the_lowest_index() -> None:
    logits = torch.zeros(3, 7)
    assert sets(logits, TopK(2)) == [[0, 1]] * 3
    assert sets(logits, TopP(0.3)) == [[0, 1, 2]] * 3
    assert sets(torch.tensor([[0.0, 1.0, 1.0, 0.0]]), TopK(3)) == [[0, 1, 2]]


def test_the_expert_that_crosses_p_is_included_and_equality_counts_as_reached() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64))
    assert sets(logits, TopP(0.51)) == [[0, 1]]
    assert sets(logits, TopP(0.49)) == [[0]]
    exact = torch.tensor([[0.0, 0.0]], dtype=torch.float64)  # probabilities are 0.5 and 0.5 exactly
    assert sets(exact, TopP(0.5)) == [[0]]


@pytest.mark.parametrize("scale", [1.0, 20.0, 80.0])
def test_p_of_one_takes_all_experts_and_a_tiny_p_takes_one(scale: float) -> None:
    logits = torch.randn(50, 8).sign() * scale
    assert sets(logits, TopP(1.0)) == [list(range(8))] * 50
    assert all(len(chosen) == 1 for chosen in sets(logits, TopP(1e-9)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("spec", [TopK(2), TopP(0.6), TopP(1.0)])
def test_logits_that_are_not_finite_never_become_a_valid_choice(bad: float, spec: TopK | TopP) -> None:
    logits = torch.randn(4, 6)
    logits[2, 5] = bad
    routing = route_tokens(logits, spec)
    for token in range(4):
        gates = routing.gate_N[routing.token_N == token]
        assert len(gates) > 0
        assert gates.isnan().all() == (token == 2)
        assert gates.isfinite().all() == (token != 2)


def test_large_logits_stay_finite() -> None:
    routing = route_tokens(torch.tensor([[1e4, -1e4, 0.0]]), TopK(2))
    assert routing.gate_N.isfinite().all()


def test_router_runs_in_float32_or_better() -> None:
    for dtype, expected in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        layer = RouterLayer(8, 4, TopK(2)).to(dtype)
        layer.reset_parameters()
        assert layer(torch.randn(5, 8, dtype=dtype)).logits_TE.dtype == expected
    layer = RouterLayer(8, 4, TopK(2))
    layer.reset_parameters()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(5, 8)).logits_TE.dtype == torch.float32


@pytest.mark.parametrize(
    "make",
    [
        lambda: TopK(0),
        lambda: TopK(1.5),
        lambda: TopK(True),
        lambda: TopP(True),
        lambda: TopP(0.0),
        lambda: TopP(1.01),
        lambda: TopP(float("nan")),
    ],
)
def test_bad_specs(make: object) -> None:
    with pytest.raises(ConfigError):
        make()  # type: ignore[operator]


def test_k_above_the_number_of_experts() -> None:
    with pytest.raises(ConfigError, match="at most the number of experts, 4"):
        RouterLayer(8, 4, TopK(5))


@given(
    rows=st.lists(st.lists(LOGITS, min_size=5, max_size=5), min_size=1, max_size=6),
    thresholds=st.lists(st.floats(1e-6, 1, exclude_min=True), min_size=6, max_size=6),
)
@settings(deadline=None)
def test_a_threshold_for_each_token_is_the_oracle_of_that_token(
    rows: list[list[float]], thresholds: list[float]
) -> None:
    logits = torch.tensor(rows, dtype=torch.float64)
    p_T = torch.tensor(thresholds[: len(rows)], dtype=torch.float64)
    sums = logits.softmax(1).sort(1, descending=True).values.cumsum(1)
    assume(
        bool(((sums[:, :-1] - p_T[:, None]).abs() > 1e-12).all())
    )  # sums round differently where one reaches p exactly
    routing = route_tokens(logits, TopP(0.6), RouterState(inputs=RouterInputs(p_T)))
    for token, (row, p) in enumerate(zip(logits, p_T.tolist(), strict=True)):
        found = routing.expert_N[routing.token_N == token].tolist()
        assert found == sorted(oracles.chosen(row, p=p))


def test_a_threshold_of_one_takes_all_and_top_k_has_none() -> None:
    logits = torch.tensor([[40.0, -40.0, 0.0]] * 2)
    assert route_tokens(
        logits, TopP(0.6), RouterState(inputs=RouterInputs(torch.tensor([1.0, 0.5])))
    ).num_tokens_E.tolist() == [
        2,
        1,
        1,
    ]
    with pytest.raises(ConfigError, match="the router is top-1"):
        RouterLayer(3, 2, TopK(1))(torch.zeros(1, 3), RouterInputs(torch.ones(1)))


def test_raw_gates_are_the_probabilities() -> None:
    logits = torch.randn(7, 5, dtype=torch.float64)
    for spec in (TopK(2, renormalize=False), TopP(0.7, renormalize=False)):
        routing = route_tokens(logits, spec)
        torch.testing.assert_close(routing.gate_N, logits.softmax(1)[routing.token_N, routing.expert_N])


def test_the_width_that_a_token_activates() -> None:
    logits = torch.randn(9, 4)
    for spec in (TopK(2), TopP(0.6)):
        expected = [float(sum((3, 5, 7, 11)[i] for i in taken)) for taken in sets(logits, spec)]
        assert route_tokens(logits, spec).width_T((3, 5, 7, 11)).tolist() == expected


@pytest.mark.parametrize("p", [5e-324, 7e-46, 1e-30])
def test_a_p_that_float32_rounds_to_nothing_keeps_the_best(p: float) -> None:
    logits = torch.randn(9, 5)
    routing = route_tokens(logits, TopP(p))
    assert routing.expert_N[torch.argsort(routing.token_N)].tolist() == logits.argmax(1).tolist()
    assert (routing.gate_N == 1).all()
    tied = route_tokens(torch.zeros(3, 5), TopP(p))
    assert tied.expert_N.tolist() == [0, 0, 0]
    moe = hmoe.MoE(6, [4, 4], TopP(0.6))
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert moe(torch.randn(4, 6), torch.full((4,), p, dtype=dtype))[1].num_tokens_E.sum() == 4


def test_the_bias_keeps_its_precision_in_any_module() -> None:
    def layer() -> hmoe.MoE:
        return hmoe.MoE(8, [4] * 4, TopK(2, bias_rate=1e-3))

    low = layer().bfloat16()
    for _ in range(300):
        low.router.update_bias(torch.tensor([9, 1, 1, 1]))
    assert low.router.bias_E is not None
    assert low.router.bias_E.tolist() == pytest.approx([-0.3, 0.3, 0.3, 0.3], abs=1e-5)
    bits = low.router.bias_E.clone()
    for module in (
        low.half(),
        low.to(torch.bfloat16),
        low.to("cpu", torch.float16),
        low.type(torch.bfloat16),
        copy.deepcopy(low),
    ):
        assert torch.equal(module.router.bias_E, bits)
        assert module.router.weight.dtype != torch.float32
    again = layer().bfloat16()
    again.load_state_dict(low.state_dict())
    assert torch.equal(again.router.bias_E, bits)  # type: ignore[arg-type]
    again.load_state_dict({name: value.bfloat16() for name, value in low.state_dict().items()}, assign=True)
    assert again.router.bias_E is not None
    assert again.router.bias_E.dtype == torch.float32
    with torch.device("meta"):
        empty = layer().bfloat16().to_empty(device="cpu")
    assert empty.router.bias_E.dtype == torch.float32
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        assert layer().router.bias_E.dtype == torch.float32  # type: ignore[union-attr]
    finally:
        torch.set_default_dtype(before)
    assert low.double().router.bias_E.dtype == torch.float64


def test_a_bias_that_was_cast_behind_the_modules_back_is_refused() -> None:
    """As FSDP2's mixed precision does while a forward pass runs."""
    layer = RouterLayer(6, 4, TopK(2, bias_rate=0.1))
    assert layer.bias_E is not None
    layer.bias_E.data = layer.bias_E.data.bfloat16()
    with pytest.raises(
        ConfigError,
        match=r"bias_E: was made torch\.bfloat16, must stay torch\.float32; use hmoe\.parallelize",
    ):
        layer(torch.randn(3, 6))


@pytest.mark.parametrize(
    ("top_p_T", "told"),
    [
        (torch.tensor([0.5, float("nan"), 0.5]), r"top_p_T: nan of token 1, must be from 0 to 1"),
        (torch.tensor([0.5, 0.5, 1.5]), r"top_p_T: 1\.5 of token 2"),
        (torch.tensor(0.5), r"top_p_T: its shape is \(\), must be \(3,\)"),
    ],
)
def test_a_threshold_that_is_none_is_refused(top_p_T: torch.Tensor, told: str) -> None:
    moe = hmoe.MoE(4, [3, 5], hmoe.TopP(0.5))
    with pytest.raises(hmoe.ConfigError, match=told):
        moe(torch.randn(3, 4), top_p_T=top_p_T)
