"""The plans that are shipped, and what a command line changes of a plan. No torch."""

import difflib
from collections.abc import Sequence
from importlib import resources

from hmoe.config.recipe_file import parse_tree
from hmoe.errors import ConfigError
from hmoe.sweep.plan import PLAN, SweepPlan, check_plan

_PLANS = "hmoe.sweep.plans"


def list_shipped_plans() -> list[str]:
    """Return the names of the plans that are shipped."""
    files = resources.files(_PLANS).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def read_shipped_plan(name: str) -> SweepPlan:
    """Return a plan that is shipped.

    Raises:
        ConfigError: if there is none of this name, with those that there are.
    """
    names = list_shipped_plans()
    if name not in names:
        nearest = difflib.get_close_matches(name, names, 1, 0)[0]
        raise ConfigError(
            f"{name}: neither a .yaml file, nor a folder with {PLAN}, nor a plan that is shipped; "
            f"nearest is {nearest}, of {', '.join(names)}"
        )
    file = resources.files(_PLANS) / f"{name}.yaml"
    return check_plan(parse_tree(file.read_text(encoding="utf-8"), name), name)


def change_plan(plan: SweepPlan, overrides: Sequence[str], seeds: Sequence[int] | None) -> SweepPlan:
    """Return a plan with overrides of all its recipes, after those that each group has, and with other seeds.

    Args:
        plan: as it was read.
        overrides: `a.b=c`, or `--a.b` and `c`; a control's recipe follows from its source's.
        seeds: in place of the plan's; None: those stay.

    Raises:
        ConfigError: naming the group whose recipe cannot have them.
    """
    tree = plan.model_dump(exclude_defaults=True)
    for group in tree["groups"]:
        if "recipe" in group:
            group["overrides"] = [*group.get("overrides", ()), *overrides]
    return check_plan(tree if seeds is None else tree | {"seeds": list(seeds)}, "plan")
