import math

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


def balanced(num_experts: int, k: int) -> hmoe.Routing:
    """Zero logits, and every expert chosen by as many tokens."""
    logits = torch.zeros(num_experts, num_experts, dtype=torch.float64)
    load_E, none = torch.full((num_experts,), k), torch.zeros(0)
    return hmoe.Routing(none, none, none, logits, torch.softmax(logits, 1), load_E)


@pytest.mark.parametrize(("num_experts", "k"), [(4, 2), (8, 1), (8, 3)])
def test_what_losses_are_at_balance(num_experts: int, k: int) -> None:
    r, widths = balanced(num_experts, k), range(1, num_experts + 1)
    mean = (num_experts + 1) / 2
    assert hmoe.load_balance(r).item() == pytest.approx(k)
    assert hmoe.parameter_penalty(r, widths).item() == pytest.approx(k)
    assert hmoe.parameter_penalty(r, widths, "max").item() == pytest.approx(k * mean / num_experts)
    assert hmoe.parameter_penalty(r, widths, "raw").item() == pytest.approx(k * mean)
    assert hmoe.router_entropy(r).item() == pytest.approx(num_experts * math.log(num_experts))
    assert hmoe.router_entropy(r, "one").item() == pytest.approx(math.log(num_experts))
    assert hmoe.router_z(r).item() == pytest.approx(math.log(num_experts) ** 2)


@pytest.mark.parametrize("k", [1, 2])
def test_what_losses_are_where_all_tokens_take_the_same_experts(k: int) -> None:
    logits = torch.tensor([[30.0] * k + [-800.0] * (4 - k)] * 5, dtype=torch.float64)
    r = route_tokens(logits, hmoe.TopK(k))
    assert hmoe.load_balance(r).item() == pytest.approx(4)
    assert hmoe.router_z(r).item() == pytest.approx((30 + math.log(k)) ** 2)
    assert hmoe.router_entropy(r).item() == pytest.approx(4 * math.log(k))
    narrow, wide = (hmoe.parameter_penalty(r, widths) for widths in ((1, 1, 9, 9), (9, 9, 1, 1)))
    assert narrow.item() == pytest.approx(4 * 1 / 5)
    assert wide.item() == pytest.approx(4 * 9 / 5)


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
