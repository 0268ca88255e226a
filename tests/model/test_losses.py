import pytest
import torch

import hmoe
from hmoe.model.router import route_tokens
from tests import oracles

WIDTHS = (3, 5, 8, 16)


def routing(spec: hmoe.TopK | hmoe.TopP = hmoe.TopP(0.6), scale: float = 2.0) -> hmoe.Routing:  # noqa: B008
    return route_tokens((scale * torch.randn(23, 4, dtype=torch.float64)).requires_grad_(), spec)


def choices(r: hmoe.Routing) -> list[list[int]]:
    return [r.expert_N[r.token_N == t].tolist() for t in range(len(r.probs_TE))]


@pytest.mark.parametrize(("norm", "divisor"), [("mean", 8.0), ("max", 16.0), ("raw", 1.0)])
def test_parameter_penalty_norms(norm: str, divisor: float) -> None:
    r = routing()
    expected = oracles.parameter_penalty(choices(r), r.probs_TE, list(WIDTHS), divisor)
    torch.testing.assert_close(hmoe.parameter_penalty(r, WIDTHS, norm), expected)


def test_equal_widths_give_exactly_the_load_balancing_loss() -> None:
    r = routing()
    assert hmoe.parameter_penalty(r, (7, 7, 7, 7)) == hmoe.load_balance(r)
    assert hmoe.parameter_penalty(r, WIDTHS) == hmoe.parameter_penalty(r, [2 * w for w in WIDTHS])


def test_uniform_routing_gives_the_number_of_experts_per_token() -> None:
    probs = torch.full((8, 4), 0.25, dtype=torch.float64)
    r = hmoe.Routing(torch.zeros(0), torch.zeros(0), torch.zeros(0), probs.log(), probs, torch.full((4,), 4))
    assert hmoe.load_balance(r) == pytest.approx(2.0)
    assert hmoe.parameter_penalty(r, WIDTHS) == pytest.approx(2.0)


def test_minimising_the_entropy_sharpens_the_router() -> None:
    logits = torch.tensor([[0.5, 0.0, -0.5, 0.0]], dtype=torch.float64, requires_grad=True)
    before = torch.softmax(logits, 1).max()
    hmoe.router_entropy(route_tokens(logits, hmoe.TopP(0.6))).backward()
    assert logits.grad is not None
    assert torch.softmax(logits - 0.1 * logits.grad, 1).max() > before


def test_entropy_of_a_certain_router_is_zero_with_finite_gradients() -> None:
    logits = torch.tensor([[2000.0, 0.0, -2000.0]], requires_grad=True)
    loss = hmoe.router_entropy(route_tokens(logits, hmoe.TopK(1)))
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_entropy_scale() -> None:
    r = routing()
    torch.testing.assert_close(hmoe.router_entropy(r), 4 * hmoe.router_entropy(r, scale="one"))


def test_penalty_pushes_down_experts_that_are_popular_and_large() -> None:
    logits = torch.zeros(10, 4, dtype=torch.float64, requires_grad=True)
    hmoe.parameter_penalty(route_tokens(logits, hmoe.TopP(1.0)), WIDTHS).backward()
    assert logits.grad is not None
    assert logits.grad.sum(0).tolist() == sorted(logits.grad.sum(0).tolist())


def test_unknown_choices_are_named() -> None:
    with pytest.raises(hmoe.ConfigError, match="mean, max, raw"):
        hmoe.parameter_penalty(routing(), WIDTHS, norm="median")
    with pytest.raises(hmoe.ConfigError, match="2 widths for 4 experts"):
        hmoe.parameter_penalty(routing(), (3, 5))
    with pytest.raises(hmoe.ConfigError, match="experts, one"):
        hmoe.router_entropy(routing(), scale="two")
