"""The balance within widths against a slow loop, with its gradients."""

import pytest
import torch

import hmoe
from hmoe.config import recipes
from hmoe.model.losses import LOSS_FUNCTIONS, average_losses
from hmoe.model.router import route_tokens
from hmoe.model.routing import Routing
from hmoe.model.size_balance import compute_size_balance
from hmoe.model.statistics import RouterStatistics, measure_router, measure_routers
from hmoe.specs.model import MoESpec
from tests import oracles
from tests.conftest import tiny
from tests.model.test_losses import choices

CASES = {
    "two groups and one alone": (3, 5, 3, 16, 5, 5),
    "neighbours": (4, 4, 8, 8, 8, 8),
    "one group": (7, 7, 7, 7, 7, 7),
    "zero-computation experts": (3, 3, 5, 9, 0, 0),
}
SPECS: list[hmoe.TopK | hmoe.TopP] = [
    hmoe.TopK(1), hmoe.TopK(3), hmoe.TopP(0.6), hmoe.TopK(2, scores="sigmoid")
]  # fmt: skip


def route(tokens: int, spec: hmoe.TopK | hmoe.TopP = SPECS[1], scale: float = 2.0) -> Routing:
    return route_tokens((scale * torch.randn(tokens, 6, dtype=torch.float64)).requires_grad_(), spec)


@pytest.mark.parametrize("widths", CASES.values(), ids=CASES)
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("tokens", [23, 1])
def test_loss_and_gradient_are_those_of_the_loop(
    widths: tuple[int, ...], spec: hmoe.TopK | hmoe.TopP, tokens: int
) -> None:
    routing = route(tokens, spec)
    loss = compute_size_balance(measure_router(routing), widths)
    expected = oracles.size_balance(choices(routing), routing.probs_TE, list(widths))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)
    gradients = [torch.autograd.grad(v, routing.logits_TE, retain_graph=True)[0] for v in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-14)


def test_ties_are_balanced_like_any_choice() -> None:
    routing = route(5, hmoe.TopK(2), scale=0.0)
    assert choices(routing) == [[0, 1]] * 5
    loss = compute_size_balance(measure_router(routing), CASES["two groups and one alone"])
    expected = oracles.size_balance(
        choices(routing), routing.probs_TE, list(CASES["two groups and one alone"])
    )
    torch.testing.assert_close(loss, expected)


def test_statistics_of_parts_add_up_and_layers_are_apart() -> None:
    routings, widths = [route(9), route(9, SPECS[2])], CASES["neighbours"]
    together = compute_size_balance(measure_routers(routings), widths)
    apart = [compute_size_balance(measure_router(routing), widths) for routing in routings]
    torch.testing.assert_close(together, torch.stack(apart))
    first, second = (measure_router(routing) for routing in routings)
    whole = compute_size_balance(first + second, widths)
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
        assert compute_size_balance(part, widths).item() == pytest.approx(1)
    collapsed = count([10, 0, 10, 0, 0, 0], [5, 0, 5, 0, 0, 0])
    assert compute_size_balance(collapsed, widths).item() == pytest.approx((2 + 4) / 2)


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
    loss = compute_size_balance(part, CASES["neighbours"])
    (gradient,) = torch.autograd.grad(loss, part.prob_sum_E)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert load[0] or gradient[:2].abs().sum() == 0  # nobody there is pushed


def test_the_share_between_widths_is_left_alone() -> None:
    """Moving all probability of a width up or down changes nothing, unlike with plain load balancing."""
    routing = route(50, hmoe.TopK(2))
    widths = CASES["neighbours"]
    (gradient,) = torch.autograd.grad(
        compute_size_balance(measure_router(routing), widths), routing.probs_TE, retain_graph=True
    )
    prob_E = routing.probs_TE.detach().mean(0)
    moved = [(gradient[0] * prob_E)[group].sum().abs().item() for group in (slice(0, 2), slice(2, 6))]
    assert moved == pytest.approx([0, 0], abs=1e-12)
    assert gradient.abs().max() > 1e-3


def test_it_is_logged_where_it_has_a_coefficient_only() -> None:
    statistics = measure_routers([route(9)])
    plain, ruled = (MoESpec(widths=CASES["neighbours"], size_balance=c) for c in (0.0, 0.08))
    assert "size_balance" not in average_losses(statistics, plain)
    value = average_losses(statistics, ruled)["size_balance"]
    assert value == LOSS_FUNCTIONS["size_balance"](statistics, ruled).mean()


def test_recipes_hold_it_where_it_is_set() -> None:
    overrides = [*tiny("tiny-equal"), "model.moe.widths=[8,8,16,16]"]
    tree = recipes.read_recipe("tiny-equal", overrides)[1].model_dump(mode="json")
    assert "size_balance" not in tree["model"]["moe"]
    changed = recipes.read_recipe("tiny-equal", [*overrides, "model.moe.size_balance=0.08"])[1]
    assert changed.model_dump(mode="json")["model"]["moe"]["size_balance"] == 0.08
    assert recipes.check_recipe(changed.model_dump(mode="json")) == changed


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widths": (3, 4, 5)}, "moe.size_balance = 0.1: all 3 experts differ in width, so"),
        (
            {"widths": (4, 4), "router": hmoe.ExpertChoice(1.0)},
            "size_balance has no effect with experts that",
        ),
    ],
)
def test_what_has_no_effect_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(hmoe.ConfigError, match=message):
        MoESpec(size_balance=0.1, **fields)  # type: ignore[arg-type]
