"""The runs of a plan: their names, what each waits for, and the recipe that each is trained by. No torch."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any

from hmoe.config.recipes import make_data_path_absolute
from hmoe.config.run import RESUMABLE, RunConfig
from hmoe.runs.control import derive_control
from hmoe.runs.summary import RunSummary
from hmoe.sweep.plan import SweepGroup, SweepPlan

# Change no number of a row: where things lie, how memory is saved. Budgets do, validation's text, and which steps have
# a row in the logs, over which experts per token are averaged.
_COUNTED = {
    f"train.{name}"
    for name in ("steps", "tokens", "flops", "seconds", "eval_flops", "eval_sequences", "log_every")
}
_UNCOUNTED = RESUMABLE - _COUNTED | {"train.activation_checkpointing"}


@dataclass(frozen=True)
class PlannedRun:
    """One training of a sweep.

    Attributes:
        name: of its folder below the sweep's `runs/`.
        group: whose recipe it has.
        seed: of the run.
        source: name of the run that must be finished before; None: it waits for nothing.
    """

    name: str
    group: SweepGroup
    seed: int
    source: str | None


def list_planned_runs(plan: SweepPlan) -> list[PlannedRun]:
    """List the runs of a plan, seed by seed: a sweep that is stopped early has whole pairs."""
    return [
        PlannedRun(
            f"{group.name}-{seed}", group, seed, None if group.source is None else f"{group.source}-{seed}"
        )
        for seed in plan.seeds
        for group in plan.groups
    ]


def make_run_config(plan: SweepPlan, run: PlannedRun, finished: Mapping[str, RunSummary]) -> RunConfig:
    """Return the recipe of a run.

    Args:
        plan: of the sweep.
        run: one of it.
        finished: runs by name; must hold the source of a control.
    """
    if run.group.control_of is None:
        return make_data_path_absolute(plan.read_recipe(run.group, run.seed))
    assert run.source is not None
    return derive_control(finished[run.source])


def hash_recipe(config: RunConfig) -> str:
    """Return twelve digits that tell recipes apart that differ in a key which changes a number.

    Keys at their defaults do not count, so that a recipe has the same digits when a later version knows more keys.
    """
    tree = config.model_dump(mode="json", exclude_defaults=True, exclude={"model"})
    tree["model"] = _strip_defaults(config.model)
    for key in _UNCOUNTED:
        section, _, name = key.partition(".")
        tree.get(section, {}).pop(name, None)
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]


def _strip_defaults(value: Any) -> Any:
    """Return a spec as plain values, without the fields that have their default; a kind keeps its name."""
    if not is_dataclass(value):
        return value
    defaults = {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(value)
    }
    return {
        name: _strip_defaults(getattr(value, name))
        for name, default in defaults.items()
        if getattr(value, name) != default or name == "name"
    }
