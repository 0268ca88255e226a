"""Plans: what they hold, which are refused in one line, and that they come back from their file."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from hmoe.errors import ConfigError
from hmoe.sweep.folder import SweepFolder
from hmoe.sweep.plan import check_plan, dump_plan, read_plan
from hmoe.sweep.runs import list_planned_runs
from tests.sweep.helpers import CONTROL, OPEN, SHORT, SMALL, UNEQUAL, make_plan


def test_a_plan_comes_back_from_its_file(tmp_path: Path) -> None:
    plan = make_plan(baseline="control", overrides=["optim.lr=1e-3"])
    (tmp_path / "plan.yaml").write_text(dump_plan(plan, tmp_path))
    assert read_plan(tmp_path / "plan.yaml") == plan


def test_runs_come_seed_by_seed_and_wait_for_their_source() -> None:
    runs = list_planned_runs(make_plan(seeds=[3, 5]))
    assert [(run.name, run.source) for run in runs] == [
        ("unequal-3", None), ("control-3", "unequal-3"), ("unequal-5", None), ("control-5", "unequal-5"),
    ]  # fmt: skip


def test_a_recipe_file_lies_relative_to_its_plan(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: tiny\noptim: {lr: 0.5}\n")
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({"groups": [{"name": "a", "recipe": "mine.yaml"}]}))
    plan = read_plan(tmp_path / "plan.yaml")
    assert plan.read_recipe(plan.groups[0], 7).optim.lr == 0.5
    assert plan.read_recipe(plan.groups[0], 7).seed == 7
    # In a sweep folder it stands relative to that, so that both can move together.
    with SweepFolder(tmp_path / "sweeps" / "one") as folder:
        assert folder.bind_plan(plan) == folder.bind_plan(plan) == plan
    assert yaml.safe_load((tmp_path / "sweeps" / "one" / "sweep.yaml").read_text())["groups"][0][
        "recipe"
    ] == ("../../mine.yaml")


def test_budgets_end_a_run_and_are_measured_on_the_way() -> None:
    plan = check_plan({"kind": "isoflop", "groups": [OPEN], "budgets": [2e9, 1e9]}, "plan")
    train = plan.read_recipe(plan.groups[0], 0).train
    assert (train.flops, train.eval_flops, train.tokens, train.steps) == (2e9, (1e9, 2e9), None, None)


def test_a_schedule_in_steps_becomes_a_constant_rate_where_families_take_others() -> None:
    plan = check_plan(
        {"kind": "isoflop", "groups": [{"name": "a", "recipe": "quickstart"}], "budgets": [1e9]}, "plan"
    )
    optim = plan.read_recipe(plan.groups[0], 0).optim
    assert (optim.schedule, optim.schedule_steps, optim.warmup_steps) == ("constant", None, 60)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": []}, "groups"),
        ({"groups": [CONTROL]}, r"control: unequal must be a group before it; nearest is control"),
        ({"groups": [CONTROL, UNEQUAL]}, "must be a group before it"),
        ({"groups": [UNEQUAL, UNEQUAL]}, "groups: unequal is given twice"),
        ({"groups": [{"name": "a"}]}, "group a: give either a recipe or control_of"),
        ({"groups": [{**UNEQUAL, "control_of": "b"}]}, "give either a recipe or control_of"),
        ({"groups": [{**UNEQUAL, "name": "../x"}]}, r"groups.0.name = '../x'"),
        ({"groups": [{**UNEQUAL, "recipes": "x"}]}, "groups.0.recipes: unknown key; nearest is recipe"),
        ({"seed": [0]}, "seed: unknown key; nearest is seeds"),
        ({"seeds": [1, 1]}, "seeds: 1 is given twice"),
        ({"seeds": [-1]}, "seeds.0 = -1"),
        ({"baseline": "contrl"}, "baseline = contrl: must be a group; nearest is control"),
        ({"budgets": [1e9]}, "budgets: an isoflop sweep needs them"),
        ({"kind": "isoflop"}, "budgets: an isoflop sweep needs them"),
        ({"groups": [{**UNEQUAL, "recipe": "tinny"}]}, "group unequal: .*nearest is tiny"),
        ({"groups": [{**UNEQUAL, "overrides": ["optim.lrr=1"]}]}, "group unequal: optim.lrr: unknown key"),
        ({"kind": "grit"}, "kind = 'grit'"),
        ({"overrides": ["seed=3"]}, "seed: is set by the seeds of the sweep"),
        ({"groups": [{**UNEQUAL, "overrides": ["--seed", "3"]}]}, "seed: is set by the seeds of the sweep"),
        ({"kind": "isoflop", "budgets": [1e9]}, "train.steps: is set by the budgets of an isoflop sweep"),
        (
            {"groups": [UNEQUAL, {**CONTROL, "overrides": ["optim.lr=1"]}]},
            "overrides has no effect with control_of",
        ),
        (
            {"groups": [UNEQUAL, CONTROL, {"name": "c", "control_of": "control"}]},
            "control is a control itself",
        ),
        (
            {"groups": [{"name": "equal", "recipe": "tiny-equal"}, {"name": "c", "control_of": "equal"}]},
            "group c: equal has no experts of different width",
        ),
    ],
)
def test_a_wrong_plan_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_plan(**changes)
    assert "\n" not in str(caught.value)


def test_the_small_recipe_is_unequal() -> None:
    config = make_plan().read_recipe(make_plan().groups[0], 0)
    assert config.model.moe is not None
    assert len(set(config.model.moe.expert_widths)) == 4
    assert len(SMALL) > len(SHORT)


def test_overrides_that_differ_from_a_folder_s_are_named(tmp_path: Path) -> None:
    words = ["optim.lr=0.5", "train.eval_sequences=8"]
    with SweepFolder(tmp_path / "s") as folder:
        folder.bind_plan(make_plan(overrides=words))
        for own, message in (
            (words[:1], r"^train\.eval_sequences=8: .* has this override"),
            ([*words, "train.keep=3"], r"^train\.keep=3: .* does not have this override"),
            (words[::-1], r"has the same overrides in another order, .*\(optim\.lr=0\.5 train"),
        ):
            with pytest.raises(ConfigError, match=message):
                folder.bind_plan(make_plan(overrides=own))
