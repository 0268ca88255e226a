"""What a sweep will cost, from steps that are measured before it begins. No torch."""

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hmoe.config.run import RunConfig
from hmoe.errors import HMoEError
from hmoe.storage import read_json, write_atomic
from hmoe.sweep.families import list_coefficients
from hmoe.sweep.plan import SweepPlan
from hmoe.sweep.process import Place, start_child
from hmoe.sweep.runs import PlannedRun, hash_recipe


@dataclass(frozen=True)
class StepCost:
    """A measured training step of one recipe, while all places are busy.

    Attributes:
        seconds: of a step, median.
        flops: training FLOPs of a step.
        tokens: of a step.
        start_seconds: of a process before its first step, to be paid by every run.
        relative_error: standard error of the seconds by their mean.
    """

    seconds: float
    flops: float
    tokens: int
    start_seconds: float = 0.0
    relative_error: float = 0.0


@dataclass(frozen=True)
class SweepCost:
    """What is left to train of a sweep.

    Attributes:
        num_runs: runs.
        flops: training FLOPs, of controls those of their source.
        seconds: wall-clock time, if all places are busy until the end.
    """

    num_runs: int
    flops: float
    seconds: float


def measure_step_costs(
    plan: SweepPlan,
    groups: Sequence[str],
    places: Sequence[Place],
    machine: str,
    file: Path,
    show: Callable[[str, int], None] = lambda name, done: None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, StepCost]:
    """Measure a few steps of each group that has a recipe, in all places at once as the sweep will run.

    Recipes that differ in learning rate or in coefficients of losses alone are measured once.

    Args:
        plan: of the sweep.
        groups: names; controls cost what their source does, a step of which they match.
        places: where children will compute.
        machine: name of this machine with its places; what was measured on another counts for nothing.
        file: that keeps what was measured, for the next time.
        show: told of each group that is measured, and how many were before.
        say: called with a line for a group whose first steps failed, which then has no cost: its runs tell why.
    """
    known = _read_costs(file)
    costs: dict[str, StepCost] = {}
    for name in groups:
        group, config = _find_recipe(plan, name)
        key = f"{hash_recipe(_unify_what_costs_alike(config))}, {machine}"
        if key not in known:
            show(group, len(costs))
            try:
                known[key] = _measure_group(config, group, places)
            except HMoEError as error:
                say(f"not in the estimate: {error}")
                continue
            write_atomic(
                file, json.dumps({key: asdict(cost) for key, cost in known.items()}, indent=1).encode()
            )
        costs[name] = known[key]
    return costs


def _find_recipe(plan: SweepPlan, name: str) -> tuple[str, RunConfig]:
    """Return the group whose recipe a step of this one costs as much as, and the recipe: a control's source."""
    group = plan.get_group(name)
    while group.control_of is not None:
        group = plan.get_group(group.control_of)
    return group.name, plan.read_recipe(group, plan.seeds[0])


def _unify_what_costs_alike(config: RunConfig) -> RunConfig:
    """Return a recipe whose first steps take as long, alike for all that differ in learning rate or coefficients."""
    moe = config.model.moe
    if moe is not None:
        coefficients: dict[str, Any] = dict.fromkeys(list_coefficients(moe), 1.0)
        moe = replace(moe, **coefficients)
    changed = {"model": replace(config.model, moe=moe), "optim": config.optim.model_copy(update={"lr": 1.0})}
    return config.model_copy(update=changed)


def _read_costs(file: Path) -> dict[str, StepCost]:
    """Return what was measured before; a file that is none of ours is measured anew."""
    try:
        return {key: StepCost(**values) for key, values in read_json(file).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _measure_group(config: RunConfig, name: str, places: Sequence[Place]) -> StepCost:
    request = {"measure": config.model_dump(mode="json")}
    begin = time.monotonic()
    children = [start_child(request, place, stdout=subprocess.PIPE) for place in places]
    try:
        texts = [child.communicate()[0] for child in children]
        wall_seconds = time.monotonic() - begin
    finally:
        for child in children:
            child.kill()
    lines = [text.decode(errors="replace").strip().splitlines() for text in texts]
    failed = next(
        (own_lines for child, own_lines in zip(children, lines, strict=True) if child.returncode), None
    )
    if failed is not None:
        raise HMoEError(
            f"group {name}: {failed[-1].removeprefix('error: ') if failed else 'its first steps failed'}"
        )
    measured = [json.loads(own_lines[-1]) for own_lines in lines]
    return StepCost(
        seconds=statistics.median(each["seconds"] for each in measured),
        flops=measured[0]["flops"],
        tokens=config.data.batch_tokens,
        relative_error=max(each["relative_error"] for each in measured),
        start_seconds=max(0.0, wall_seconds - max(each["total_seconds"] for each in measured)),
    )


def estimate_sweep_cost(
    runs: Sequence[PlannedRun],
    configs: Mapping[str, RunConfig],
    costs: Mapping[str, StepCost],
    num_places: int,
) -> SweepCost:
    """Estimate what runs cost; `configs` are the recipes of the groups that have one, `costs` of those measured."""
    flops = seconds = 0.0
    for run in runs:
        cost = costs.get(run.group.name)
        if cost is None:
            continue
        steps = _count_steps(_find_config(run, configs), cost)
        flops += steps * cost.flops
        seconds += steps * cost.seconds + cost.start_seconds
    return SweepCost(len(runs), flops, seconds / num_places)


def _find_config(run: PlannedRun, configs: Mapping[str, RunConfig]) -> RunConfig:
    return configs[run.group.name] if run.group.control_of is None else configs[run.group.control_of]


def _count_steps(config: RunConfig, cost: StepCost) -> float:
    """Return the steps until the first budget is reached."""
    train = config.train
    limits = (
        (train.steps, 1.0),
        (train.tokens, cost.tokens),
        (train.flops, cost.flops),
        (train.seconds, cost.seconds),
    )
    return min(limit / each for limit, each in limits if limit)
