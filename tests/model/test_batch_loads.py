"""Losses of micro-batches with the loads of the batch, against a slow loop and for several processes."""

import pytest
import torch

import hmoe
from hmoe.model.batch_loads import BatchLoads
from hmoe.model.losses import compute_load_balance, compute_parameter_penalty, compute_router_entropy
from hmoe.model.router import route_tokens
from hmoe.model.routing import Routing
from hmoe.model.statistics import measure_router
from hmoe.specs.hugging_face import read_hf_spec, write_hf_keys
from hmoe.specs.model import MoESpec
from hmoe.train.processes import ONE_PROCESS
from tests import oracles
from tests.model.test_losses import choices
from tests.train.test_step import setup, take_step

WIDTHS = (3, 5, 8, 16)
SPECS: list[hmoe.TopK | hmoe.TopP] = [hmoe.TopK(2), hmoe.TopP(0.6)]


def route(tokens: int, spec: hmoe.TopK | hmoe.TopP = SPECS[0]) -> Routing:
    return route_tokens((2 * torch.randn(tokens, 4, dtype=torch.float64)).requires_grad_(), spec)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("parts", [1, 3])
def test_losses_and_gradients_are_those_of_the_loop(spec: hmoe.TopK | hmoe.TopP, parts: int) -> None:
    routings = [route(7, spec) for _ in range(parts)]
    loads = BatchLoads(ONE_PROCESS.add)
    statistics = [loads.include(measure_router(routing)) for routing in routings]
    taken, probs = [choices(r) for r in routings], [r.probs_TE for r in routings]
    for loss, weights in ((compute_load_balance, [1.0] * 4), (None, [w / 8 for w in WIDTHS])):
        values = [loss(s) if loss else compute_parameter_penalty(s, WIDTHS) for s in statistics]
        mean, expected = sum(values, torch.zeros(())) / parts, oracles.batch_balance(taken, probs, weights)
        torch.testing.assert_close(mean, expected, rtol=1e-12, atol=0)
        for routing in routings:
            both = [torch.autograd.grad(v, routing.logits_TE, retain_graph=True)[0] for v in (mean, expected)]
            torch.testing.assert_close(*both, rtol=1e-11, atol=1e-14)


def test_the_last_micro_batch_has_the_whole_batch_s_loads_and_its_own_probabilities() -> None:
    first, second = (measure_router(route(9)) for _ in range(2))
    loads = BatchLoads(ONE_PROCESS.add)
    loads.include(first)
    last, whole = loads.include(second), first + second
    assert torch.equal(last.share_E, whole.share_E)
    assert torch.equal(last.prob_E, second.prob_E)
    assert compute_router_entropy(last) == compute_router_entropy(second)
    assert compute_load_balance(last) != compute_load_balance(second)


def test_processes_with_one_micro_batch_each_have_the_loss_of_the_whole_batch() -> None:
    """The mean over processes of losses with reduced loads and own probabilities is the whole batch's loss."""
    parts = [measure_router(route(8)) for _ in range(2)]
    totals = [sum(p.load_E for p in parts), torch.tensor(16)]
    values = []
    for part in parts:
        answers = iter(totals)
        values.append(compute_load_balance(BatchLoads(lambda tensor, a=answers: next(a)).include(part)))  # type: ignore[misc]
    torch.testing.assert_close(sum(values, torch.zeros(())) / 2, compute_load_balance(parts[0] + parts[1]))


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_with_loads_that_are_known_before_losses_add_up_to_those_of_the_whole_batch(
    spec: hmoe.TopK | hmoe.TopP, processes: int
) -> None:
    """Four micro-batches on any number of processes: value and gradient are the slow loop's over all their tokens."""
    routings = [route(7, spec) for _ in range(4)]
    parts = [measure_router(routing) for routing in routings]
    totals = (sum(part.load_E for part in parts), torch.tensor(28))
    values = {"balance": torch.zeros(()), "penalty": torch.zeros(())}
    for rank in range(processes):
        own = parts[rank::processes]
        # Sums of all processes: the tokens that the others have are added here.
        others = (totals[0] - sum(p.load_E for p in own), totals[1] - 7 * len(own))
        loads = BatchLoads.of_all(own, lambda tensor: tensor)
        loads._load, loads._num_tokens = loads._load + others[0], loads._num_tokens + others[1]
        for part in own:
            whole = loads.include(part)
            values["balance"] = values["balance"] + compute_load_balance(whole) / 4
            values["penalty"] = values["penalty"] + compute_parameter_penalty(whole, WIDTHS) / 4
    taken = [experts for routing in routings for experts in choices(routing)]
    probs_TE = torch.cat([routing.probs_TE for routing in routings])
    expected = {
        "balance": oracles.load_balance(taken, probs_TE),
        "penalty": oracles.parameter_penalty(taken, probs_TE, list(WIDTHS), 8.0),
    }
    for name, value in values.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=0)
        for routing in routings:
            both = [
                torch.autograd.grad(v, routing.logits_TE, retain_graph=True)[0]
                for v in (value, expected[name])
            ]
            torch.testing.assert_close(*both, rtol=1e-11, atol=1e-14)


def test_no_tokens_and_empty_experts_give_numbers() -> None:
    loads = BatchLoads(ONE_PROCESS.add)
    assert compute_load_balance(loads.include(measure_router(route(0)))).item() == 0
    assert compute_load_balance(loads.include(measure_router(route(1)))).isfinite()


BALANCED = ("model.moe.load_balance=0.5", "model.moe.statistics=batch")


def test_a_step_of_one_micro_batch_is_the_same_and_of_several_is_not() -> None:
    for parts, same in ((1, True), (2, False)):
        values = []
        for rules in (BALANCED, BALANCED[:1]):
            config, model, optimizer, batch = setup(f"data.micro_batches={parts}", *rules)
            record = take_step(model, optimizer, batch, config, 0)
            values.append([record.terms, record.grad_norm, model.embed.weight.sum().item()])
        assert (values[0] == values[1]) is same
        assert values[0][0]["loss"] == values[1][0]["loss"]  # type: ignore[index]
        assert values[0][0]["router_entropy"] == values[1][0]["router_entropy"]  # type: ignore[index]


def test_batch_statistics_without_a_load_are_refused_and_an_export_keeps_them() -> None:
    with pytest.raises(
        hmoe.ConfigError, match="statistics has no effect while no loss with a coefficient counts"
    ):
        MoESpec(widths=WIDTHS, statistics="batch")
    keys = write_hf_keys(setup(*BALANCED)[0].model, 32)
    assert read_hf_spec(keys).moe.statistics == "batch"  # type: ignore[union-attr]
    assert keys["training_rules"] == {"statistics": "batch"}
    with pytest.raises(hmoe.ConfigError, match=r"training_rules\.speed: no such rule"):
        read_hf_spec(keys | {"training_rules": {"speed": 1}})
    assert write_hf_keys(setup()[0].model, 32)["training_rules"] is None
