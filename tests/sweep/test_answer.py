"""Answers of a sweep from rows alone: known laws, a planted difference, a null, learning rates, power."""

import dataclasses
import math
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from hmoe.statistics.isoflop_words import describe_isoflop
from hmoe.sweep.answer import (
    analyze_group_power,
    analyze_isoflop_power,
    analyze_sweep,
    describe_left_out,
    describe_planned_power,
    describe_power,
    list_loss_points,
    select_fitted_rows,
)
from hmoe.sweep.outcome import compare_sweep, describe_controls, group_summaries, summarize_rows
from hmoe.sweep.plan import SweepPlan
from hmoe.sweep.rows import SweepRow
from hmoe.sweep.runs import hash_recipe
from hmoe.sweep.tuning import Trial, describe_edges, list_choices, rank_trials
from tests.sweep.helpers import CONTROL, OPEN, UNEQUAL, make_plan, make_row

SIZES = {"x0.5": 1e5, "x1": 3e5, "x2": 9e5, "x3": 2.7e6}
BUDGETS = (1e12, 3e12, 1e13, 3e13)
FRONTIER = 2.9543  # least loss of the law below at the last budget


def compute_loss(size: float, tokens: float) -> float:
    return 1.8 + 60 / size**0.35 + 250 / tokens**0.38


def make_isoflop(shift: float, noise: float = 0.003) -> tuple[SweepPlan, list[SweepRow]]:
    """Return rows of two families of one law, of which one is shifted by so many nats."""
    generator = random.Random(5)
    families = ("equal-topk", "unequal-topk")
    groups = [
        {**OPEN, "name": f"{family},{size}", "family": family, "size": size}
        for size in SIZES
        for family in families
    ]
    rows = []
    for size, parameters in SIZES.items():
        for seed in (0, 1):
            shared = generator.gauss(0, 0.01)
            for family in families:
                own = shared + generator.gauss(0, noise)
                for budget in BUDGETS:
                    tokens = round(budget / 6 / parameters)
                    loss = (
                        compute_loss(parameters, tokens) + own + (shift if family == "unequal-topk" else 0.0)
                    )
                    rows.append(
                        make_row(f"{family},{size}-{seed}", loss, family=family, size=size, budget=budget,
                                 flops=round(6 * parameters * tokens), tokens=tokens, step=tokens // 512)
                    )  # fmt: skip
    plan = make_plan(kind="isoflop", groups=groups, seeds=[0, 1], budgets=list(BUDGETS))
    return plan, rows


def test_a_planted_difference_is_found_and_a_null_is_not() -> None:
    plan, rows = make_isoflop(-0.05)
    result = analyze_sweep(plan, rows)
    assert result is not None
    assert [family.family for family in result.families] == ["equal-topk", "unequal-topk"]
    for budget in result.families[1].budgets:
        assert budget.difference is not None
        assert budget.difference.low is not None
        assert budget.difference.high is not None
        assert budget.difference.low < -0.05 < budget.difference.high < 0
        assert budget.leverage is not None
        assert budget.leverage.interval.excludes(1.0)
    assert any("worth more" in sentence for sentence in describe_isoflop(result))
    null = analyze_sweep(*make_isoflop(0.0))
    assert null is not None
    assert not any(
        budget.difference.excludes(0.0) for budget in null.families[1].budgets if budget.difference
    )
    assert any("no difference shown" in sentence for sentence in describe_isoflop(null))


def test_rows_that_are_not_finished_or_have_no_budget_are_no_points() -> None:
    row = make_row("a-0", budget=1e12, step=100)
    rows = [row, dataclasses.replace(row, status="failed: x"), dataclasses.replace(row, budget=None)]
    plan = make_plan(kind="isoflop", groups=[{**OPEN, "name": "a"}], budgets=[1e12])
    assert [point.run for point in list_loss_points(plan, rows)] == ["a-0"]
    assert analyze_sweep(make_isoflop(0.0)[0], []) is None


def test_measurements_within_the_warm_up_are_left_out_and_told() -> None:
    plan, rows = make_isoflop(0.0)
    plan = plan.model_copy(update={"overrides": ("optim.warmup_steps=130",)})
    spoilt = [
        dataclasses.replace(row, validation_loss=9.0) if (row.size, row.budget) == ("x3", 1e12) else row
        for row in rows
    ]
    assert [row.step for row in spoilt if row.validation_loss == 9.0] == [120] * 4
    assert len(list_loss_points(plan, spoilt)) == 60
    edge = plan.model_copy(update={"overrides": ("optim.warmup_steps=120",)})
    assert len(list_loss_points(edge, spoilt)) == 60
    result = analyze_sweep(plan, spoilt)
    assert result is not None
    for family in result.families:
        assert family.fit.misfit is None
        assert family.budgets[-1].frontier_loss is not None
        assert family.budgets[-1].frontier_loss.value is not None
        assert abs(family.budgets[-1].frontier_loss.value - FRONTIER) < 0.03
    (sentence,) = describe_left_out(plan, spoilt)
    assert sentence == (
        "Not in the fits: 4 of 64 measurements, at which the warm-up was not over (equal-topk,x3 at 1.0e12; "
        "unequal-topk,x3 at 1.0e12 FLOPs)."
    )
    assert describe_left_out(make_isoflop(0.0)[0], rows) == []


def test_a_family_that_has_nothing_after_the_warm_up_is_told() -> None:
    plan, rows = make_isoflop(0.0)
    rows = [dataclasses.replace(row, step=20) if row.family == "equal-topk" else row for row in rows]
    result = analyze_sweep(plan, rows)
    assert result is not None
    assert [family.family for family in result.families] == ["unequal-topk"]
    assert (
        describe_left_out(plan, rows)[1]
        == "equal-topk has no fit: all its measurements are within the warm-up."
    )
    unplanned = make_isoflop(0.0)[0].model_copy(update={"overrides": ("optim.warmup_steps=0",)})
    assert describe_left_out(unplanned, [dataclasses.replace(row, step=None) for row in rows]) == []


def test_a_control_has_the_warm_up_of_its_source() -> None:
    groups = [{**OPEN, "name": "unequal"}, {**CONTROL, "family": "control"}]
    plan = make_plan(kind="isoflop", groups=groups, budgets=[1e12], overrides=["optim.warmup_steps=9"])
    rows = [make_row(f"{name}-0", budget=1e12, step=step) for name, step in (("control", 9), ("unequal", 10))]
    assert [row.run for row in select_fitted_rows(plan, rows)] == ["unequal-0"]


def clock(rows: list[SweepRow], slower: float, noise: float = 1e-6) -> list[SweepRow]:
    """Return rows of which each seed took another time, and unequal experts so many times that of equal ones."""
    generator = random.Random(2)
    times = {row.run: math.exp(generator.gauss(0, noise)) * (1 + row.seed) for row in rows}
    return [
        dataclasses.replace(
            row,
            seconds=(row.flops or 0) * 1e-11 * times[row.run] * (slower if row.family[0] == "u" else 1),
        )
        for row in rows
    ]


def test_leverage_in_seconds_is_that_in_flops_by_what_a_flop_costs() -> None:
    plan, rows = make_isoflop(-0.05)
    rows = clock(rows, 2.0)
    held_up = next(place for place, row in enumerate(rows) if row.budget == BUDGETS[-1])
    rows[held_up] = dataclasses.replace(rows[held_up], seconds=1e6)  # as one that was suspended for days
    result = analyze_sweep(plan, rows)
    assert result is not None
    for budget in result.families[1].budgets:
        assert budget.leverage is not None
        assert budget.leverage_in_seconds is not None
        assert budget.leverage.interval.value is not None
        assert budget.leverage_in_seconds.value is not None
        assert abs(budget.leverage_in_seconds.value * 2 / budget.leverage.interval.value - 1) < 1e-5


def test_the_power_of_an_isoflop_sweep_is_of_pairs_at_one_size() -> None:
    _, rows = make_isoflop(-0.05)
    (power,) = analyze_isoflop_power(rows, "equal-topk").values()
    ends = {row.run: row.validation_loss or 0.0 for row in rows if row.budget == BUDGETS[-1]}
    pairs = [
        [ends[f"unequal-topk,{size}-{seed}"] - ends[f"equal-topk,{size}-{seed}"] for seed in (0, 1)]
        for size in SIZES
    ]
    assert power.num_pairs == 2
    assert abs(power.spread.value - math.sqrt(sum((a - b) ** 2 / 2 for a, b in pairs) / len(pairs))) < 1e-12
    (line,) = describe_power({"unequal-topk": power}, "at one size ")
    assert line.startswith("unequal-topk: at one size pairs spread by 0.00")
    assert analyze_isoflop_power([row for row in rows if row.seed == 0], "equal-topk") == {}


def make_tuning(penalties: Sequence[float] = (0.5,)) -> SweepPlan:
    groups = [
        {
            **UNEQUAL,
            "name": f"{family},lr={rate}" + (f",parameter_penalty={penalty}" if len(penalties) > 1 else ""),
            "family": family,
            "overrides": [
                *UNEQUAL["overrides"],
                f"optim.lr={rate}",
                f"model.moe.parameter_penalty={penalty}",
            ],
        }
        for family in ("a", "b", "c")
        for rate in (0.001, 0.002, 0.004)
        for penalty in penalties
    ]
    return make_plan(kind="tuning", groups=groups, seeds=[0, 1])


def test_each_family_takes_the_rate_of_its_smallest_mean_loss() -> None:
    losses = {"a": (5.0, 4.0, 4.5), "b": (3.0, 3.5, 3.7)}
    rows = [
        make_row(f"{family},lr={rate}-{seed}", loss + (0.1, -0.1)[seed])
        for family, own in losses.items()
        for rate, loss in zip((0.001, 0.002, 0.004), own, strict=True)
        for seed in (0, 1)
    ]
    rows.append(make_row("c,lr=0.001-0", status="failed: x"))
    # The best loss of all, but of one seed alone: the other one died.
    rows = [row if row.run != "b,lr=0.002-1" else make_row(row.run, status="failed: y") for row in rows]
    rows = [row if row.run != "b,lr=0.002-0" else make_row(row.run, 1.0) for row in rows]
    trials = rank_trials(make_tuning(), rows)
    assert [trial.family for trial in trials if trial.is_chosen] == ["a", "b"]
    assert [trial.behind is None for trial in trials] == [False] * 4 + [True] + [False] + [True] * 3
    best, next_best = trials[1], trials[2]
    assert (best.setting, best.is_chosen, best.behind) == ({"optim.lr": 0.002}, True, 0)
    assert next_best.behind is not None
    assert abs(next_best.behind - 0.5) < 1e-9
    assert list_choices(trials) == [("rates", "a=0.002,b=0.001")]
    assert describe_edges(trials) == ["b: lr 0.001 is at the edge of the grid; a better one may lie beyond"]


def test_a_family_takes_a_rate_and_a_coefficient_together() -> None:
    plan = make_tuning([0.1, 1.0]).model_copy(update={"seeds": (0,)})
    rows = [
        make_row(f"{group.name}-0", 2.0 if group.name == "b,lr=0.004,parameter_penalty=0.1" else 3.0)
        for group in plan.groups
    ]
    trials = rank_trials(plan, rows)
    assert list_choices(trials) == [
        ("rates", "a=0.001,b=0.004,c=0.001"),
        ("override", "a:model.moe.parameter_penalty=0.1"),
        ("override", "b:model.moe.parameter_penalty=0.1"),
        ("override", "c:model.moe.parameter_penalty=0.1"),
    ]
    # Of two values both are edges.
    assert [line.partition(" is")[0] for line in describe_edges(trials)] == [
        f"{family}: {name}"
        for family, rate in (("a", "lr 0.001"), ("b", "lr 0.004"), ("c", "lr 0.001"))
        for name in (rate, "parameter_penalty 0.1")
    ]


@pytest.mark.parametrize("penalties", [(0.0, 1.0), (1.0, 0.0)])
def test_a_loss_that_is_off_is_a_setting_too(penalties: tuple[float, float]) -> None:
    plan = make_tuning(penalties).model_copy(update={"seeds": (0,)})
    rows = [make_row(f"{group.name}-0", 2.0 if "penalty=0.0" in group.name else 3.0) for group in plan.groups]
    trials = rank_trials(plan, rows)
    assert {trial.setting["model.moe.parameter_penalty"] for trial in trials} == {0.0, 1.0}
    assert ("override", "a:model.moe.parameter_penalty=0") in list_choices(trials)


def test_a_choice_can_be_copied_as_it_was_trained() -> None:
    trials = [Trial("a", {"optim.lr": 0.001234567891}, 1.0, 0.0, True)]
    assert list_choices(trials) == [("rates", "a=0.001234567891")]


def test_a_comparison_from_rows_tells_a_planted_difference_and_its_power() -> None:
    plan = make_plan(seeds=[0, 1, 2, 3], baseline="control")
    rows = []
    for seed in plan.seeds:
        config = plan.read_recipe(plan.groups[0], seed)
        noise = (0.0, 0.02, -0.01, 0.005)[seed]
        unequal = make_row(f"unequal-{seed}", 5.0 + noise - 0.1 + 0.001 * seed, recipe=hash_recipe(config))
        rows += [unequal, make_row(f"control-{seed}", 5.0 + noise, mean_activated_width=32.0)]
    comparison = compare_sweep(plan, rows, Path("sweep"))
    assert comparison is not None
    unequal_row = comparison.rows[0]
    assert unequal_row["verdict"].startswith("ahead by")
    assert unequal_row["pairs"] == 4
    groups = group_summaries(plan, summarize_rows(plan, rows, Path("sweep")))
    powers = analyze_group_power(groups, "control")
    assert list(powers) == ["unequal"]
    (sentence,) = describe_power(powers)
    assert "so 4 seeds can show differences of 0.00" in sentence
    assert analyze_group_power(groups, None) == {}
    assert "if pairs spread by 0.0100 nats, 4 seeds" in describe_planned_power(plan)


def test_a_control_that_has_another_width_than_its_source_is_told() -> None:
    plan = make_plan(seeds=[0, 1])
    rows = [make_row(f"unequal-{seed}", mean_activated_width=32.0) for seed in plan.seeds]
    rows += [
        make_row(f"control-{seed}", mean_activated_width=width) for seed, width in ((0, 32.5), (1, 34.0))
    ]
    (note,) = describe_controls(plan, group_summaries(plan, summarize_rows(plan, rows, Path("x"))), "control")
    assert note == "control-1: activated 34 hidden units, +6.2% from unequal-1, whose control it is"


def test_a_control_without_its_source_in_the_table_is_left_out() -> None:
    plan = make_plan(seeds=[0], groups=[UNEQUAL, CONTROL])
    assert summarize_rows(plan, [make_row("control-0")], Path("x")) == {}


def test_unequal_experts_are_compared_with_their_control_beside_the_baseline() -> None:
    equal = {**UNEQUAL, "name": "equal", "overrides": [*UNEQUAL["overrides"], "optim.lr=0.5"]}
    plan = make_plan(groups=[equal, UNEQUAL, CONTROL], seeds=list(range(6)), baseline="equal")
    generator = random.Random(1)

    def describe(shift: float) -> list[str]:
        rows = []
        for seed in plan.seeds:
            shared = generator.gauss(0, 0.05)
            for name, own in (("equal", 0.3), ("unequal", shift), ("control", 0.0)):
                loss = 5 + shared + own + generator.gauss(0, 0.002)
                rows.append(make_row(f"{name}-{seed}", loss))
        return describe_controls(plan, group_summaries(plan, summarize_rows(plan, rows, Path("x"))), "equal")

    (line,) = describe(-0.1)
    assert line.startswith("unequal beside its control control: -0.1")
    assert "bits per byte, ahead by 0.1" in line
    (line,) = describe(0.0)
    assert "no difference shown" in line
    rows = [make_row(f"{name}-{seed}") for name in ("equal", "unequal", "control") for seed in plan.seeds]
    groups = group_summaries(plan, summarize_rows(plan, rows, Path("x")))
    for baseline in ("control", "unequal"):  # the table has that difference
        assert describe_controls(plan, groups, baseline) == []
    dear = [dataclasses.replace(row, flops=2 * 10**9) if row.group == "control" else row for row in rows]
    groups = group_summaries(plan, summarize_rows(plan, dear, Path("x")))
    (line,) = describe_controls(plan, groups, "equal")
    assert "control: not at equal FLOPs" in line
