"""Every plan that is shipped: read, its recipes built, what each is about; and what a command line changes of one."""

from importlib import resources
from typing import Any

import pytest
import torch

from hmoe.cli.sweep import sweep_plan
from hmoe.errors import ConfigError
from hmoe.model.transformer import Transformer
from hmoe.sweep.plan import SweepPlan
from hmoe.sweep.shipped import change_plan, list_shipped_plans, read_shipped_plan
from tests.sweep.helpers import CONTROL, UNEQUAL, make_plan

NAMES = ["hyper", "hyper-flops", "neighbours", "rectify", "rectify-flops", "rectify-scratch", "upcycle"]


def test_the_shipped_plans_are_these_and_the_help_names_each() -> None:
    assert list_shipped_plans() == NAMES
    words = (sweep_plan.__doc__ or "").replace(",", " ").replace(".", " ").split()
    assert set(NAMES) <= set(words)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_plan_says_what_it_asks_and_its_models_can_be_built(name: str) -> None:
    text = (resources.files("hmoe.sweep.plans") / f"{name}.yaml").read_text(encoding="utf-8")
    question = text.partition("\n")[0]
    assert question.startswith("# ")
    assert question.endswith("?")
    plan = read_shipped_plan(name)
    assert plan.seeds == (0, 1, 2)
    assert plan.baseline is not None
    for group in plan.groups:
        config = plan.read_recipe(group, 2)
        assert (config.seed, config.train.eval_sequences, config.train.eval_every) == (2, 512, 0)
        with torch.device("meta"):
            model = Transformer(config.model)
        assert model.embed.weight.is_meta


def list_budgets(plan: SweepPlan) -> set[tuple[int | None, float | None]]:
    trains = [plan.read_recipe(group, 0).train for group in plan.groups if not group.is_source]
    return {(train.steps, train.flops) for train in trains}


def test_neighbours_are_trained_to_the_same_flops() -> None:
    plan = read_shipped_plan("neighbours")
    assert list_budgets(plan) == {(None, 4e12)}
    assert plan.baseline == "tiny-control"
    assert [group.name for group in plan.groups] == [group.recipe for group in plan.groups]
    not_causal = [group.name for group in plan.groups if not plan.read_recipe(group, 0).model.causal]
    assert not_causal == ["tiny-expert-choice"]
    assert len(plan.groups) == 14


@pytest.mark.parametrize("name", ["rectify", "rectify-flops", "rectify-scratch"])
def test_methods_of_rectify_differ_in_their_router_alone(name: str) -> None:
    plan = read_shipped_plan(name)
    rows = [group for group in plan.groups if not group.is_source]
    assert [group.name for group in rows] == [
        "dense",
        "top-1",
        "top-1+IR",
        "top-1+FR",
        "top-1+FR+IR",
        "top-2",
    ]
    assert {group.upcycled_from for group in rows} == {None if name == "rectify-scratch" else "source"}
    configs = [plan.read_recipe(group, 0) for group in rows]
    assert list_budgets(plan) == {(None, 4.56e12) if name == "rectify-flops" else (480, None)}
    assert {config.optim.lr for config in configs} == {3e-3 if name == "rectify-scratch" else 3e-4}
    moes = [config.model.moe for config in configs[1:]]
    routers: list[Any] = [moe.router for moe in moes if moe is not None]
    assert [(router.k, router.rectify) for router in routers] == [
        (1, None), (1, "ir"), (1, "fr"), (1, "fr+ir"), (2, None),
    ]  # fmt: skip
    assert {router.capacity_factor for router in routers} == {1.0}
    assert {(moe.expert_widths, moe.load_balance) for moe in moes if moe is not None} == {((256,) * 8, 0.01)}
    assert {config.model.moe_layers for config in configs[1:]} == {(1, 3)}


@pytest.mark.parametrize(("name", "budget"), [("hyper", (395, None)), ("hyper-flops", (None, 4e12))])
def test_hyper_experts_are_the_one_difference(name: str, budget: tuple[int | None, float | None]) -> None:
    plan = read_shipped_plan(name)
    assert list_budgets(plan) == {budget}
    plain, hyper = (plan.read_recipe(group, 0).model.moe for group in plan.groups)
    assert plain is not None
    assert hyper is not None
    assert (plain.hyper, plain.expert_widths, plain.router) == (None, hyper.expert_widths, hyper.router)
    assert hyper.hyper is not None


def test_words_of_the_command_line_come_after_a_groups_own_and_seeds_are_replaced() -> None:
    plan = change_plan(read_shipped_plan("rectify"), ["--optim.lr", "1e-2", "train.steps=7"], [5])
    configs = [plan.read_recipe(group, 5) for group in plan.groups]
    assert {(config.optim.lr, config.train.steps) for config in configs} == {(1e-2, 7)}
    assert plan.seeds == (5,)
    assert plan.groups[1].upcycled_from == "source"
    with_control = change_plan(make_plan(), ["optim.lr=1"], None)
    assert with_control.seeds == make_plan().seeds
    assert with_control.groups[1] == make_plan().groups[1]
    faster = {**UNEQUAL, "overrides": [*UNEQUAL["overrides"], "optim.lr=1"]}
    assert with_control == make_plan(groups=[faster, CONTROL])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["seed=3"], "plan: seed: is set by the seeds of the sweep; remove the override"),
        (["--seed", "3"], "plan: seed: is set by the seeds of the sweep"),
        (["optim.lrr=1"], r"group tiny: optim\.lrr: unknown key; nearest is optim\.lr"),
    ],
)
def test_words_that_change_nothing_are_refused(words: list[str], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        change_plan(read_shipped_plan("hyper"), words, None)
