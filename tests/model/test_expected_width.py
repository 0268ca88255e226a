"""The expected width, the own loss that the published results train with, against a slow loop, with its gradients."""

from pathlib import Path

import pytest
import torch

import hmoe
from hmoe.model.router import route_tokens
from hmoe.model.statistics import RouterStatistics, measure_router, measure_routers
from tests import oracles
from tests.model.own_losses import measure_own_loss

FILE = Path(__file__).parents[2] / "docs" / "results" / "expected_width.py"
CASES = {"unequal": (3, 5, 8, 16), "pairs": (4, 4, 8, 8), "zero-computation experts": (3, 5, 0, 0)}
SPECS: list[hmoe.TopK | hmoe.TopP] = [hmoe.TopK(2), hmoe.TopP(0.6), hmoe.TopK(2, scores="sigmoid")]


def draw(tokens: int) -> torch.Tensor:
    return (2 * torch.randn(tokens, 4, dtype=torch.float64)).requires_grad_()


def measure(statistics: RouterStatistics, widths: tuple[int, ...]) -> torch.Tensor:
    return measure_own_loss(FILE.read_text(), "expected_width", statistics, widths)


@pytest.mark.parametrize("widths", CASES.values(), ids=CASES)
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("tokens", [17, 1])
def test_loss_and_gradient_are_those_of_the_loop(
    widths: tuple[int, ...], spec: hmoe.TopK | hmoe.TopP, tokens: int
) -> None:
    routing = route_tokens(draw(tokens), spec)
    loss = measure(measure_router(routing), widths)
    expected = oracles.expected_width(routing.probs_TE, list(widths))
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-14)
    gradients = [torch.autograd.grad(v, routing.logits_TE, retain_graph=True)[0] for v in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)


def test_a_uniform_router_has_one_and_one_expert_its_width() -> None:
    for logits, value in (
        ([0.0] * 4, 1.0),
        ([-900.0, -900.0, 900.0, -900.0], 8 / 8),
        ([900.0, 0, 0, 0], 3 / 8),
    ):
        routing = route_tokens(torch.tensor([logits] * 3, dtype=torch.float64), hmoe.TopK(1))
        assert measure(measure_router(routing), CASES["unequal"]).item() == pytest.approx(value)


def test_without_tokens_it_is_zero_and_layers_are_apart() -> None:
    widths = CASES["unequal"]
    assert measure(measure_router(route_tokens(draw(0), SPECS[0])), widths).item() == 0
    routings = [route_tokens(draw(9), spec) for spec in SPECS]
    apart = [measure(measure_router(routing), widths) for routing in routings]
    torch.testing.assert_close(measure(measure_routers(routings), widths), torch.stack(apart))
