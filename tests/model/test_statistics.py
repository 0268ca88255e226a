from collections.abc import Callable

import pytest
import torch

import hmoe
from hmoe.model import losses, statistics
from hmoe.model.router import route_tokens
from hmoe.model.statistics import RouterStatistics, measure_router, measure_routers

WIDTHS = (3, 5, 8, 16, 0)
LOSSES: dict[str, Callable[[RouterStatistics], torch.Tensor]] = {
    "balance": losses.compute_load_balance,
    "weighed balance": lambda s: losses.compute_load_balance(s, [1, 1, 1, 1, 0.5]),
    "penalty": lambda s: losses.compute_parameter_penalty(s, WIDTHS),
    "entropy": losses.compute_router_entropy,
    "z": losses.compute_router_z,
}
SPECS: list[hmoe.TopK | hmoe.TopP] = [hmoe.TopK(2), hmoe.TopP(0.6), hmoe.TopK(2, scores="sigmoid")]


def logits(tokens: int) -> torch.Tensor:
    return (2 * torch.randn(tokens, 5, dtype=torch.float64)).requires_grad_()


def fields(part: RouterStatistics) -> list[torch.Tensor]:
    values = (part.num_tokens, part.load_E, part.prob_sum_E, part.entropy_sum, part.z_sum)
    return [torch.as_tensor(value) for value in values]


def of_two_processes(first: RouterStatistics, second: RouterStatistics) -> RouterStatistics:
    """What the first of two processes gets where the second one computed the other part."""
    others = iter(fields(second))
    return first.reduce(lambda tensor: tensor + next(others))


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("first", [8, 1, 0], ids=lambda tokens: f"{tokens} tokens first")
@pytest.mark.parametrize("join", [RouterStatistics.__add__, of_two_processes])
def test_statistics_of_two_parts_are_those_of_the_whole(
    spec: hmoe.TopK | hmoe.TopP,
    first: int,
    join: Callable[[RouterStatistics, RouterStatistics], RouterStatistics],
) -> None:
    logits_TE = logits(17)
    whole = measure_router(route_tokens(logits_TE, spec))
    both = join(
        *(measure_router(route_tokens(part_TE, spec)) for part_TE in (logits_TE[:first], logits_TE[first:]))
    )
    for value, expected in zip(fields(both), fields(whole), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-13, atol=1e-13)
    for loss in LOSSES.values():
        torch.testing.assert_close(loss(both), loss(whole), rtol=1e-13, atol=1e-13)
        (gradient,), (truth,) = (
            torch.autograd.grad(loss(s), logits_TE, retain_graph=True) for s in (both, whole)
        )
        torch.testing.assert_close(gradient, truth, rtol=1e-12, atol=1e-14)


def test_losses_of_parts_are_not_the_whole_s() -> None:
    """Why statistics are added and not losses: shares and probabilities are multiplied."""
    logits_TE = logits(16)
    whole, *halves = (
        measure_router(route_tokens(part, SPECS[0])) for part in (logits_TE, logits_TE[:8], logits_TE[8:])
    )
    mean = sum(losses.compute_load_balance(half) for half in halves) / 2
    assert abs(mean - losses.compute_load_balance(whole)) > 1e-3


@pytest.mark.parametrize("waits", [False, True], ids=["layer by layer", "all layers at once"])
def test_statistics_of_layers_give_a_loss_for_each(waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "would_wait", lambda tensor: waits)
    routings = [route_tokens(logits(9), spec) for spec in SPECS]
    together = measure_routers(routings)
    for loss in LOSSES.values():
        expected = torch.stack([loss(measure_router(routing)) for routing in routings])
        torch.testing.assert_close(loss(together), expected, rtol=1e-14, atol=1e-14)


def test_shares_sum_to_the_experts_of_a_token_and_probabilities_to_one() -> None:
    part = measure_router(route_tokens(logits(7), hmoe.TopK(3)), logits=False)
    assert part.share_E.sum().item() == pytest.approx(3)
    assert part.prob_E.sum().item() == pytest.approx(1)
    assert part.entropy_sum is part.z_sum is None


def test_without_tokens_every_loss_is_zero() -> None:
    none = measure_router(route_tokens(logits(0), SPECS[1]))
    for part in (none, none + none, none.reduce(torch.clone)):
        assert [loss(part).item() for loss in LOSSES.values()] == [0] * len(LOSSES)
