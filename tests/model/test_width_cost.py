"""The cost of width by probability alone against a slow loop, with its gradients."""

import pytest
import torch

import hmoe
from hmoe.model.losses import average_losses
from hmoe.model.router import route_tokens
from hmoe.model.statistics import measure_router, measure_routers
from hmoe.model.width_cost import compute_width_cost
from hmoe.specs.model import MoESpec
from tests import oracles

CASES = {"unequal": (3, 5, 8, 16), "pairs": (4, 4, 8, 8), "zero-computation experts": (3, 5, 0, 0)}
SPECS: list[hmoe.TopK | hmoe.TopP] = [hmoe.TopK(2), hmoe.TopP(0.6), hmoe.TopK(2, scores="sigmoid")]


def draw(tokens: int) -> torch.Tensor:
    return (2 * torch.randn(tokens, 4, dtype=torch.float64)).requires_grad_()


@pytest.mark.parametrize("widths", CASES.values(), ids=CASES)
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("tokens", [17, 1])
def test_loss_and_gradient_are_those_of_the_loop(
    widths: tuple[int, ...], spec: hmoe.TopK | hmoe.TopP, tokens: int
) -> None:
    routing = route_tokens(draw(tokens), spec)
    loss = compute_width_cost(measure_router(routing), widths)
    expected = oracles.width_cost(routing.probs_TE, list(widths))
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-14)
    gradients = [torch.autograd.grad(v, routing.logits_TE, retain_graph=True)[0] for v in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)


def test_a_uniform_router_costs_one_and_one_expert_its_width() -> None:
    widths = CASES["unequal"]
    for logits, value in (
        ([0.0] * 4, 1.0),
        ([-900.0, -900.0, 900.0, -900.0], 8 / 8),
        ([900.0, 0, 0, 0], 3 / 8),
    ):
        routing = route_tokens(torch.tensor([logits] * 3, dtype=torch.float64), hmoe.TopK(1))
        assert compute_width_cost(measure_router(routing), widths).item() == pytest.approx(value)


def test_without_tokens_it_is_zero_and_layers_are_apart() -> None:
    widths = CASES["unequal"]
    assert compute_width_cost(measure_router(route_tokens(draw(0), SPECS[0])), widths).item() == 0
    routings = [route_tokens(draw(9), spec) for spec in SPECS]
    apart = [compute_width_cost(measure_router(routing), widths) for routing in routings]
    torch.testing.assert_close(compute_width_cost(measure_routers(routings), widths), torch.stack(apart))


def test_it_is_logged_where_it_has_a_coefficient_only() -> None:
    statistics = measure_routers([route_tokens(draw(9), SPECS[0])])
    plain, ruled = (MoESpec(widths=CASES["unequal"], width_cost=c) for c in (0.0, 0.004))
    assert "width_cost" not in average_losses(statistics, plain)
    expected = compute_width_cost(statistics, CASES["unequal"]).mean()
    assert average_losses(statistics, ruled)["width_cost"] == expected


def test_equal_experts_are_refused() -> None:
    with pytest.raises(hmoe.ConfigError, match="width_cost has no effect with equally wide experts"):
        MoESpec(widths=(4, 4), width_cost=0.1)
    MoESpec(widths=(4, 4), width_cost=0.1, zero=hmoe.ZeroExperts(null=1))
