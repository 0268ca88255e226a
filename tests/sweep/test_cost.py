"""What a sweep costs: measured once, kept, told where steps fail, and summed over runs."""

from pathlib import Path

import pytest

from hmoe.config.run import RunConfig
from hmoe.errors import HMoEError
from hmoe.sweep import cost
from hmoe.sweep.cost import StepCost, estimate_sweep_cost, measure_step_costs
from hmoe.sweep.process import Place
from hmoe.sweep.runs import list_planned_runs
from tests.sweep.helpers import CONTROL, UNEQUAL, make_plan

OTHER = {**UNEQUAL, "name": "other", "overrides": [*UNEQUAL["overrides"], "model.moe.load_balance=0.5"]}
ALIKE = {
    **UNEQUAL,
    "name": "alike",
    "overrides": [*UNEQUAL["overrides"], "optim.lr=0.5", "model.moe.parameter_penalty=3"],
}


def test_steps_are_measured_once_and_a_failure_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def measure(config: RunConfig, name: str, places: list[Place]) -> StepCost:
        measured.append(name)
        if name == "other":
            raise HMoEError("group other: not enough memory")
        return StepCost(2.0, 1e9, 128, 3.0, 0.01)

    monkeypatch.setattr(cost, "_measure_group", measure)
    plan, lines = make_plan(groups=[UNEQUAL, CONTROL, OTHER]), []
    names, places = [group.name for group in plan.groups], [Place(0, 1), Place(1, 1)]
    file = tmp_path / "costs.json"
    for _ in range(2):
        costs = measure_step_costs(plan, names, places, "here", file, say=lines.append)
        assert costs == {"unequal": StepCost(2.0, 1e9, 128, 3.0, 0.01), "control": costs["unequal"]}
    assert measured == ["unequal", "other", "other"]
    assert lines == ["not in the estimate: group other: not enough memory"] * 2
    # What differs in a learning rate or a coefficient costs the same; a loss that is on costs something.
    alike = make_plan(groups=[UNEQUAL, ALIKE])
    assert measure_step_costs(alike, ["unequal", "alike"], places, "here", file).keys() == {
        "unequal",
        "alike",
    }
    assert measured == ["unequal", "other", "other"]
    # Another machine has its own; a file that is none of ours counts for nothing.
    measure_step_costs(plan, ["unequal"], places, "there", file)
    measure_step_costs(plan, ["unequal"], places, "here", file)
    file.write_text("none")
    measure_step_costs(plan, ["unequal"], places, "here", file)
    assert measured[3:] == ["unequal", "unequal"]
    # Four steps of two seconds and three seconds before them, for two runs of two groups, in two places.
    configs = {group.name: plan.read_recipe(group, 0) for group in plan.groups if group.recipe}
    total = estimate_sweep_cost(list_planned_runs(plan), configs, costs, 2)
    assert (total.num_runs, total.flops, total.seconds) == (6, 16e9, 22.0)


def test_a_child_keeps_to_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    from hmoe.cli import sweep_run

    configs = [make_plan().read_recipe(make_plan().groups[0], 0)]  # of train.device=cpu
    anywhere = [
        configs[0].model_copy(update={"train": configs[0].train.model_copy(update={"device": "auto"})})
    ]
    monkeypatch.setattr(sweep_run, "_ask_gpu_names", lambda: ["NVIDIA H100", "NVIDIA H100"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    places = sweep_run._choose_places(3, anywhere)
    assert [place.make_environment()["CUDA_VISIBLE_DEVICES"] for place in places] == ["3", "5", "3"]
    assert sweep_run._name_machine(places) == "NVIDIA H100, 3 processes"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert [place.gpu for place in sweep_run._choose_places(None, anywhere)] == ["0", "1"]
    (place,) = sweep_run._choose_places(1, configs)
    assert place.gpu is None
    assert place.make_environment()["OMP_NUM_THREADS"] == str(place.threads)
