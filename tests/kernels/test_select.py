"""The router's kernels against its definition, at odd sizes and edges.

Choice, pairs, gates, probabilities and the gradient are compared.
"""

import pytest
import torch

import hmoe
from hmoe.kernels import select
from hmoe.model.decisions import Decisions
from hmoe.model.router import RouterLayer, route_tokens
from hmoe.model.routing import RouterInputs, RouterState, Routing
from tests.kernels.cases import INTERPRETED

SPECS: dict[str, hmoe.TopK | hmoe.TopP] = {
    "top-1 raw": hmoe.TopK(1, renormalize=False),
    "top-2": hmoe.TopK(2),
    "top-3 scaled": hmoe.TopK(3, gate_scale=2.5),
    "sigmoid": hmoe.TopK(2, scores="sigmoid"),
    "bias": hmoe.TopK(2, scores="sigmoid", bias_rate=1e-3),
    "top-p": hmoe.TopP(0.6),
    "top-p raw": hmoe.TopP(0.5, renormalize=False),
    "all": hmoe.TopP(1.0),
}
PLACES = [
    pytest.param("cpu", marks=pytest.mark.skipif(not INTERPRETED, reason="the interpreter")),
    pytest.param("cuda", marks=pytest.mark.gpu),
]
pytestmark = [pytest.mark.usefixtures("unwritten_is_nan"), pytest.mark.parametrize("device", PLACES)]


@pytest.fixture(autouse=True)
def _fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels compute what they can of float32; the definition computes float64."""
    monkeypatch.setattr("hmoe.model.router.fuses_router", lambda logits_TE: logits_TE.dtype == torch.float32)


def make_circumstances(name: str, experts: int, device: str) -> RouterState:
    bias_E = torch.linspace(-0.3, 0.3, experts, device=device) if name == "bias" else None
    return RouterState((1,) * experts, bias_E)


def both(
    logits_TE: torch.Tensor, name: str
) -> tuple[tuple[Routing, torch.Tensor], tuple[Routing, torch.Tensor]]:
    """(routing, d logits) by the kernels, and by the definition in float64."""
    results = []
    for dtype in (torch.float32, torch.float64):
        leaf = logits_TE.detach().to(dtype).requires_grad_()
        circumstances = make_circumstances(name, leaf.shape[1], leaf.device.type)
        bias_E = circumstances.bias_E
        circumstances = circumstances._replace(bias_E=None if bias_E is None else bias_E.to(dtype))
        routing = route_tokens(leaf, SPECS[name], circumstances)
        used = int(routing.num_tokens_E.sum())
        weight_N = torch.linspace(-1, 2, len(routing.gate_N), dtype=dtype, device=leaf.device)[:used]
        weight_TE = torch.linspace(-1, 1, leaf.numel(), dtype=dtype, device=leaf.device).view_as(leaf)
        weight_N = (
            weight_TE.flatten()[routing.token_N[:used] * leaf.shape[1] + routing.expert_N[:used]].sin()
            + 0 * weight_N
        )
        ((routing.gate_N[:used] * weight_N).sum() + (routing.probs_TE * weight_TE).sum()).backward()
        assert leaf.grad is not None
        results.append((routing, leaf.grad))
    return results[0], results[1]


def compare(ours: tuple[Routing, torch.Tensor], truth: tuple[Routing, torch.Tensor]) -> None:
    used = int(truth[0].num_tokens_E.sum())
    assert torch.equal(ours[0].num_tokens_E, truth[0].num_tokens_E)
    for field in ("token_N", "expert_N"):
        assert torch.equal(getattr(ours[0], field)[:used], getattr(truth[0], field)[:used]), field
    close = {"rtol": 2e-6, "atol": 1e-6, "equal_nan": True, "check_dtype": False}
    torch.testing.assert_close(ours[0].gate_N[:used], truth[0].gate_N[:used], **close)
    torch.testing.assert_close(ours[0].probs_TE, truth[0].probs_TE, **close)
    torch.testing.assert_close(ours[1], truth[1], **close)
    assert not ours[0].gate_N[used:].any()
    assert not ours[0].token_N[used:].any()


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(("tokens", "experts"), [(0, 4), (1, 3), (17, 8), (130, 5)])
def test_the_kernels_are_the_definition(name: str, tokens: int, experts: int, device: str) -> None:
    compare(*both(torch.randn(tokens, experts, device=device) * 2, name))


def test_many_experts_and_many_blocks(device: str) -> None:
    compare(*both(torch.randn(35, 64, device=device), "top-3 scaled"))
    compare(*both(torch.randn(5, 300, device=device), "top-2"))


@pytest.mark.parametrize("name", ["top-2", "top-p", "sigmoid"])
def test_ties_go_to_the_lowest_index(name: str, device: str) -> None:
    compare(*both(torch.randint(-1, 2, (40, 8), device=device).float(), name))


@pytest.mark.parametrize("name", ["top-2", "top-p", "bias"])
def test_rows_that_are_not_finite_choose_and_give_nan(name: str, device: str) -> None:
    logits_TE = torch.randn(6, 8, device=device)
    logits_TE[1, 3], logits_TE[2, 0], logits_TE[4, 5] = torch.nan, torch.inf, -torch.inf
    ours, truth = both(logits_TE, name)
    compare(ours, truth)
    assert ours[0].probs_TE.isnan().any(1).tolist() == [False, True, True, False, True, False]


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy's, of the interpreter
def test_scores_that_underflow_have_finite_gradients(device: str) -> None:
    logits_TE = torch.full((3, 4), -200.0, device=device, requires_grad=True)
    route_tokens(
        logits_TE, SPECS["sigmoid"], make_circumstances("sigmoid", 4, device)
    ).gate_N.sum().backward()
    assert logits_TE.grad is not None
    assert logits_TE.grad.isfinite().all()


@pytest.mark.parametrize("name", ["top-2", "top-p"])
def test_a_recomputation_that_rounds_otherwise_chooses_the_same(name: str, device: str) -> None:
    decisions = Decisions()
    first_TE, given = (
        torch.randn(50, 8, device=device),
        make_circumstances(name, 8, device)._replace(inputs=RouterInputs(decisions=decisions)),
    )
    first = route_tokens(first_TE, SPECS[name], given)
    decisions.begin()
    again = route_tokens(-first_TE, SPECS[name], given)
    assert torch.equal(first.token_N, again.token_N)
    assert torch.equal(first.expert_N, again.expert_N)
    assert not torch.equal(first.gate_N, again.gate_N)


def test_only_what_is_asked_for_is_differentiated(device: str) -> None:
    for field in ("gate_N", "probs_TE"):
        leaf = torch.randn(20, 8, device=device, requires_grad=True)
        twin = leaf.detach().double().requires_grad_()
        for logits_TE in (leaf, twin):
            value = getattr(
                route_tokens(logits_TE, SPECS["top-2"], make_circumstances("top-2", 8, device)), field
            )
            (value * torch.arange(value.numel(), device=device).view_as(value)).sum().backward()
        torch.testing.assert_close(leaf.grad, twin.grad, check_dtype=False, rtol=1e-5, atol=1e-4)


def test_a_router_layer_uses_them_and_serves_exact_pairs_without_gradients(device: str) -> None:
    layer = RouterLayer(16, 8, hmoe.TopP(0.5)).to(device)
    torch.nn.init.normal_(layer.weight)
    x_TD = torch.randn(30, 16, device=device)
    trained = layer(x_TD)
    assert len(trained.token_N) == 30 * 8
    with torch.no_grad():
        served = layer(x_TD)
    assert len(served.token_N) == int(served.num_tokens_E.sum())
    assert torch.equal(served.gate_N, trained.gate_N[: len(served.gate_N)])


def test_a_second_derivative_is_refused(device: str) -> None:
    logits_TE = torch.randn(5, 8, device=device, requires_grad=True)
    routing = route_tokens(logits_TE, SPECS["top-2"], make_circumstances("top-2", 8, device))
    (first,) = torch.autograd.grad(routing.gate_N.square().sum(), logits_TE, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives of a router"):
        first.sum().backward()


@pytest.mark.parametrize(
    "spec",
    [
        hmoe.TopK(4, groups=4, keep_groups=2),
        hmoe.TopK(2, capacity_factor=1.0),
        hmoe.TopK(2, straight_through=True),
        hmoe.ExpertChoice(),
    ],
    ids=["groups", "capacity", "straight through", "expert choice"],
)
def test_other_routers_are_computed_by_the_definition(
    spec: hmoe.TopK | hmoe.ExpertChoice, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "select_op", None)
    assert route_tokens(torch.randn(16, 8, device=device), spec).gate_N.isfinite().all()
