"""The balance within widths, the guide's example of an own loss, against a slow loop, with its gradients."""

import re
from pathlib import Path

import pytest
import torch

import hmoe
from hmoe.model.router import route_tokens
from hmoe.model.routing import Routing
from hmoe.model.statistics import RouterStatistics, measure_router, measure_routers
from tests import oracles
from tests.model.own_losses import measure_own_loss
from tests.model.test_losses import choices

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "own-router.md"
CASES = {
    "two groups and one alone": (3, 5, 3, 16, 5, 5),
    "neighbours": (4, 4, 8, 8, 8, 8),
    "one group": (7, 7, 7, 7, 7, 7),
    "zero-computation experts": (3, 3, 5, 9, 0, 0),
}
SPECS: list[hmoe.TopK | hmoe.TopP] = [
    hmoe.TopK(1), hmoe.TopK(3), hmoe.TopP(0.6), hmoe.TopK(2, scores="sigmoid")
]  # fmt: skip


def measure_balance(statistics: RouterStatistics, widths: tuple[int, ...]) -> torch.Tensor:
    """Return what the file that the guide writes registers as size_balance."""
    (code,) = re.findall(
        r"^cat > size_balance\.py <<'END'\n(.*?)^END$", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    return measure_own_loss(code, "size_balance", statistics, widths)


def route(tokens: int, spec: hmoe.TopK | hmoe.TopP = SPECS[1], scale: float = 2.0) -> Routing:
    return route_tokens((scale * torch.randn(tokens, 6, dtype=torch.float64)).requires_grad_(), spec)


@pytest.mark.parametrize("widths", CASES.values(), ids=CASES)
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("tokens", [23, 1])
def test_loss_and_gradient_are_those_of_the_loop(
    widths: tuple[int, ...], spec: hmoe.TopK | hmoe.TopP, tokens: int
) -> None:
    routing = route(tokens, spec)
    loss = measure_balance(measure_router(routing), widths)
    expected = oracles.size_balance(choices(routing), routing.probs_TE, list(widths))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)
    gradients = [torch.autograd.grad(v, routing.logits_TE, retain_graph=True)[0] for v in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-14)


def test_ties_are_balanced_like_any_choice() -> None:
    routing = route(5, hmoe.TopK(2), scale=0.0)
    assert choices(routing) == [[0, 1]] * 5
    loss = measure_balance(measure_router(routing), CASES["two groups and one alone"])
    expected = oracles.size_balance(
        choices(routing), routing.probs_TE, list(CASES["two groups and one alone"])
    )
    torch.testing.assert_close(loss, expected)


def test_statistics_of_parts_add_up_and_layers_are_apart() -> None:
    routings, widths = [route(9), route(9, SPECS[2])], CASES["neighbours"]
    together = measure_balance(measure_routers(routings), widths)
    apart = [measure_balance(measure_router(routing), widths) for routing in routings]
    torch.testing.assert_close(together, torch.stack(apart))
    first, second = (measure_router(routing) for routing in routings)
    whole = measure_balance(first + second, widths)
    taken = [experts for routing in routings for experts in choices(routing)]
    probs_TE = torch.cat([routing.probs_TE for routing in routings])
    torch.testing.assert_close(whole, oracles.size_balance(taken, probs_TE, list(widths)))


def count(load: list[int], probs: list[float], dtype: torch.dtype = torch.float64) -> RouterStatistics:
    prob_sum_E = torch.tensor(probs, dtype=dtype, requires_grad=True)
    return RouterStatistics(10, torch.tensor(load), prob_sum_E)


def test_what_it_is_at_balance_and_at_the_extreme() -> None:
    widths = CASES["neighbours"]
    # Balanced within widths, whatever share a width has.
    for share in (0.1, 0.5, 0.9):
        narrow, wide = share / 2, (1 - share) / 4
        part = count([3, 3, 5, 5, 5, 5], [narrow, narrow, wide, wide, wide, wide])
        assert measure_balance(part, widths).item() == pytest.approx(1)
    collapsed = count([10, 0, 10, 0, 0, 0], [5, 0, 5, 0, 0, 0])
    assert measure_balance(collapsed, widths).item() == pytest.approx((2 + 4) / 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("load", "probs"),
    [([0, 0, 5, 1, 0, 4], [1e-40, 0, 3, 2, 1, 4]), ([0] * 6, [0.0] * 6), ([5, 5, 0, 0, 0, 0], [0.0] * 6)],
    ids=["a width without tokens", "no tokens", "probabilities that underflowed"],
)
def test_a_width_without_tokens_gives_numbers(
    load: list[int], probs: list[float], dtype: torch.dtype
) -> None:
    part = count(load, probs, dtype)
    loss = measure_balance(part, CASES["neighbours"])
    (gradient,) = torch.autograd.grad(loss, part.prob_sum_E)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert load[0] or gradient[:2].abs().sum() == 0  # nobody there is pushed


def test_the_share_between_widths_is_left_alone() -> None:
    """Moving all probability of a width up or down changes nothing, unlike with plain load balancing."""
    routing = route(50, hmoe.TopK(2))
    widths = CASES["neighbours"]
    (gradient,) = torch.autograd.grad(
        measure_balance(measure_router(routing), widths), routing.probs_TE, retain_graph=True
    )
    prob_E = routing.probs_TE.detach().mean(0)
    moved = [(gradient[0] * prob_E)[group].sum().abs().item() for group in (slice(0, 2), slice(2, 6))]
    assert moved == pytest.approx([0, 0], abs=1e-12)
    assert gradient.abs().max() > 1e-3


def test_experts_that_all_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="needs experts of equal width"):
        measure_balance(measure_router(route(9)), (3, 4, 5, 6, 7, 8))
