"""Families, sizes and ablations: the recipes that they make of a preset, each of which can be built."""

import pytest

from hmoe.config import recipes
from hmoe.config.counts import estimate_flops_per_token
from hmoe.errors import ConfigError
from hmoe.specs.model import ModelSpec
from hmoe.sweep.ablations import ABLATIONS, build_ablation_plan
from hmoe.sweep.families import list_families, scale_recipe
from hmoe.sweep.grid import build_grid_plan
from hmoe.sweep.isoflop import build_families_plan, build_isoflop_plan, build_tuning_plan
from hmoe.sweep.plan import SweepPlan


def read_models(plan: SweepPlan) -> dict[str, ModelSpec]:
    return {group.name: plan.read_recipe(group, 0).model for group in plan.groups if group.recipe}


def test_families_have_the_papers_losses_and_one_total_width() -> None:
    models = read_models(build_families_plan("quickstart", [0]))
    assert list(models) == ["dense", "equal-topk", "equal-topp", "unequal-topk", "unequal-topp"]
    assert (models["dense"].moe, models["dense"].ffn) == (None, 384)
    losses = {}
    for name, model in models.items():
        if model.moe is None:
            continue
        assert sum(model.moe.expert_widths) == 1536
        assert (len(set(model.moe.expert_widths)) == 1) == name.startswith("equal")
        assert (model.moe.router.threshold is None) == name.endswith("topk")
        losses[name] = (model.moe.load_balance, model.moe.parameter_penalty, model.moe.router_entropy)
    assert losses == {
        "equal-topk": (0.01, 0, 0), "equal-topp": (0.01, 0, 0.03),
        "unequal-topk": (0, 0.1, 0), "unequal-topp": (0, 0.1, 0.03),
    }  # fmt: skip


def test_a_recipe_of_top_p_keeps_its_own_router() -> None:
    models = read_models(
        build_families_plan("tiny-topp", [0], ["model.moe.router.p=0.4", "model.moe.parameter_penalty=0.3"])
    )
    unequal, counted = models["unequal-topp"].moe, models["unequal-topk"].moe
    assert unequal is not None
    assert counted is not None
    assert unequal.router.threshold == 0.4
    assert unequal.parameter_penalty == counted.parameter_penalty == 0.3
    assert counted.router.count_experts_per_token(8) == (2, 2, 2)
    assert models["dense"].ffn == 256


def test_all_families_end_at_the_flops_of_the_recipe_at_a_constant_rate() -> None:
    plan = build_families_plan("quickstart", [0])
    configs = [plan.read_recipe(group, 0) for group in plan.groups if group.recipe]
    (flops,) = {config.train.flops for config in configs}
    quickstart = recipes.read_recipe("quickstart")[1]
    expected = 960 * 2048 * estimate_flops_per_token(quickstart.model, 256)
    assert flops == pytest.approx(expected, rel=0.01)
    assert {(config.train.steps, config.optim.schedule) for config in configs} == {(None, "constant")}
    with pytest.raises(ConfigError, match=r"train\.flops: missing"):
        build_families_plan("tiny", [0], ["train.steps=null", "train.seconds=60"])


def test_losses_of_the_recipe_stay_with_unequal_experts_alone() -> None:
    words = ["model.moe.load_balance=0.05", "model.moe.penalty_norm=max", "model.moe.router_z=0.001"]
    models = read_models(build_families_plan("tiny", [0], words))
    unequal, equal = models["unequal-topk"].moe, models["equal-topk"].moe
    assert unequal is not None
    assert equal is not None
    assert (unequal.load_balance, unequal.penalty_norm, unequal.parameter_penalty) == (0.05, "max", 0.1)
    assert (equal.load_balance, equal.penalty_norm, equal.parameter_penalty) == (0.05, "mean", 0)
    assert unequal.router_z == equal.router_z == 0.001


def test_families_are_chosen_by_name() -> None:
    plan = build_families_plan(
        "tiny",
        [0],
        families=["equal-topk", "unequal-topk", "control-topk"],
        settings={"equal-topk": ["optim.lr=0.5"]},
    )
    assert [group.name for group in plan.groups] == ["equal-topk", "unequal-topk", "control-topk"]
    assert plan.baseline == "equal-topk"
    assert plan.groups[2].control_of == "unequal-topk"
    assert plan.read_recipe(plan.groups[0], 0).optim.lr == 0.5
    assert plan.read_recipe(plan.groups[1], 0).optim.lr == 3e-3
    with pytest.raises(
        ConfigError, match="rate or override of control-topk: must be of a family among equal-topk, unequal-"
    ):
        build_families_plan(
            "tiny", [0], families=["equal-topk", "unequal-topk"], settings={"control-topk": ()}
        )
    with pytest.raises(ConfigError, match="families = unequal: must be among dense"):
        build_families_plan("tiny", [0], families=["unequal"])
    with pytest.raises(ConfigError, match="families = control-topk: is derived from unequal-topk"):
        build_families_plan("tiny", [0], families=["control-topk"])
    with pytest.raises(ConfigError, match="families come from a recipe with unequal experts"):
        list_families(recipes.read_recipe("tiny-equal")[1])


def test_sizes_change_cost_and_keep_heads_whole() -> None:
    plan = build_isoflop_plan("quickstart", [0.34, 0.67, 1, 1.34], [1e12], [0, 1])
    models = read_models(plan)
    costs = [
        estimate_flops_per_token(models[f"equal-topk,x{size}"], 256) for size in ("0.34", "0.67", "1", "1.34")
    ]
    assert costs == sorted(costs)
    assert costs[-1] > 10 * costs[0]
    assert {model.dim // model.heads for model in models.values()} == {64}
    assert len(plan.groups) == 4 * 7
    with pytest.raises(ConfigError, match=r"sizes = 0\.35: rounds to the model of 0\.3"):
        build_isoflop_plan("quickstart", [0.3, 0.35], [1e12], [0])
    unscaled = recipes.read_recipe("quickstart", scale_recipe(recipes.read_recipe("quickstart")[1], 1.0))[1]
    assert unscaled == recipes.read_recipe("quickstart")[1]
    with pytest.raises(ConfigError, match=r"sizes = 0: must be above 0"):
        build_isoflop_plan("quickstart", [0], [1e12], [0])


def test_the_same_settings_for_each_family() -> None:
    plan = build_tuning_plan("tiny", [0], [1e-3, 3e-3], families=["dense", "equal-topk"])
    rates = {group.name: plan.read_recipe(group, 0).optim.lr for group in plan.groups}
    assert rates == {
        "dense,lr=0.001": 1e-3, "dense,lr=0.003": 3e-3, "equal-topk,lr=0.001": 1e-3, "equal-topk,lr=0.003": 3e-3,
    }  # fmt: skip
    for rates, factors in (([1e-3], []), ([], [1, 1]), ([1e-3, 1e-3], [1, 2])):
        with pytest.raises(ConfigError, match="a grid needs two or more that differ"):
            build_tuning_plan("tiny", [0], rates, factors)
    with pytest.raises(ConfigError, match="give one of them or both"):
        build_tuning_plan("tiny", [0])


def test_coefficients_are_tuned_in_every_combination() -> None:
    families = ["dense", "equal-topk", "unequal-topp", "control-topp"]
    plan = build_tuning_plan("tiny", [0], [2e-3, 4e-3], [0.1, 3], families=families)
    moes = {group.name: plan.read_recipe(group, 0).model.moe for group in plan.groups}
    assert len(moes) == 2 + 2 * 2 + 2 * 2 * 2
    assert moes["dense,lr=0.002"] is None
    equal = moes["equal-topk,lr=0.004,load_balance=0.03"]
    assert equal is not None
    assert (equal.load_balance, equal.parameter_penalty, equal.router_entropy) == (0.03, 0, 0)
    summed = moes["unequal-topp,lr=0.002,parameter_penalty=0.3,router_entropy=0.003"]
    assert summed is not None
    assert (summed.load_balance, summed.parameter_penalty, summed.router_entropy) == (0, 0.3, 0.003)
    with pytest.raises(ConfigError, match="loss_factors: dense has no built-in loss"):
        build_tuning_plan("tiny", [0], loss_factors=[0.1, 1])


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changes_recipes_one_from_another(name: str) -> None:
    plan = build_ablation_plan(name, "tiny-topp" if name in ("losses", "p") else "tiny", [0])
    recipes_by_name = {group.name: repr(plan.read_recipe(group, 0)) for group in plan.groups}
    assert len(recipes_by_name) >= 3
    assert len(set(recipes_by_name.values())) == len(recipes_by_name)


def test_an_ablation_takes_controls_of_what_is_unequal() -> None:
    plan = build_ablation_plan("strategies", "tiny", [0], controls=True)
    sources = {group.name: group.control_of for group in plan.groups if group.control_of}
    assert sources == {f"{name}-control": name for name in ("arithmetic", "hybrid", "geometric")}
    assert plan.baseline == "equal"


def test_a_wrong_ablation_is_one_line() -> None:
    with pytest.raises(ConfigError, match="ablation = loss: must be among losses"):
        build_ablation_plan("loss", "tiny", [0])
    with pytest.raises(ConfigError, match="has no experts"):
        build_ablation_plan("k", "tiny-dense", [0])


def test_a_grid_has_every_combination_and_the_controls_of_unequal_experts() -> None:
    vary = {"optim.lr": ["1e-3", "3e-3"], "model.moe.widths": ["[8, 24]", "[16, 16]"]}
    plan = build_grid_plan(["mine=tiny"], vary, [0], ["train.steps=5"], controls=True)
    names = [group.name for group in plan.groups]
    assert names[:4] == ["mine,lr=1e-3,widths=-8,-24-", "mine,lr=1e-3,widths=-16,-16-",
                         "mine,lr=3e-3,widths=-8,-24-", "mine,lr=3e-3,widths=-16,-16-"]  # fmt: skip
    assert names[4:] == [f"{name}-control" for name in (names[0], names[2])]
    assert plan.read_recipe(plan.groups[2], 0).optim.lr == 3e-3
    with pytest.raises(ConfigError, match="must be a recipe or NAME=RECIPE"):
        build_grid_plan(["=tiny"], {}, [0])
