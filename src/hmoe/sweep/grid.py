"""The plan of a grid: recipes, times values of keys, times seeds. No torch."""

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from hmoe.config.recipes import list_presets
from hmoe.errors import ConfigError
from hmoe.sweep.plan import SweepPlan, check_plan


def build_grid_plan(
    recipes: Sequence[str],
    vary: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    controls: bool = False,
    baseline: str | None = None,
) -> SweepPlan:
    """Return a plan of every recipe with every choice of values.

    Args:
        recipes: presets or YAML files; NAME=RECIPE names the rows.
        vary: values by recipe key, as they are written in overrides.
        seeds: of each.
        overrides: of all recipes.
        controls: add the uniform control of each recipe whose experts differ in width.
        baseline: row that the others are compared with.

    Raises:
        ConfigError: for what is wrong with a recipe or a value.
    """
    groups = []
    for word in recipes:
        name, recipe = _split_name(word)
        for values in itertools.product(*vary.values()):
            changes = [f"{key}={value}" for key, value in zip(vary, values, strict=True)]
            label = ",".join(
                [
                    name,
                    *(f"{key.rpartition('.')[2]}={value}" for key, value in zip(vary, values, strict=True)),
                ]
            )
            groups.append(
                {
                    "name": _make_name(label),
                    "recipe": recipe,
                    "overrides": changes,
                    "family": _make_name(name),
                }
            )
    tree = {
        "kind": "grid",
        "groups": groups,
        "seeds": list(seeds),
        "overrides": list(overrides),
        "baseline": baseline,
    }
    plan = check_plan(tree | {"baseline": None} if controls else tree, "sweep")
    return check_plan(tree | {"groups": list_groups_with_controls(plan)}, "sweep") if controls else plan


def _split_name(word: str) -> tuple[str, str]:
    """Return (name, recipe) of NAME=RECIPE, or a recipe's own name."""
    name, equals, recipe = word.partition("=")
    if not word or (equals and not (name and recipe)):
        raise ConfigError(f"{word!r}: must be a recipe or NAME=RECIPE")
    if equals:
        return name, locate_recipe(recipe)
    return (Path(word).stem if word.endswith((".yaml", ".yml")) else word), locate_recipe(word)


def locate_recipe(recipe: str) -> str:
    """Return a preset's name, or the absolute path of a YAML file, which a plan can hold wherever it lies."""
    is_file = recipe not in list_presets() and recipe.endswith((".yaml", ".yml"))
    return os.path.normpath(Path(recipe).absolute()) if is_file else recipe


def _make_name(label: str) -> str:
    """Return a label as the name of a group: letters that file names and tables have no trouble with."""
    return "".join(letter if letter.isalnum() or letter in "_.+=,-" else "-" for letter in label)[:120]


def list_groups_with_controls(plan: SweepPlan) -> list[dict[str, object]]:
    """Return the groups of a plan, as plain values, and the uniform control of each whose experts differ in width."""
    groups = [group.model_dump(exclude_defaults=True) for group in plan.groups]
    for group in plan.groups:
        moe = plan.read_recipe(group, plan.seeds[0]).model.moe
        if moe is not None and len(set(moe.expert_widths)) > 1:
            groups.append(
                {
                    "name": f"{group.name}-control",
                    "control_of": group.name,
                    "family": f"{group.curve}-control",
                    "size": group.size,
                }
            )
    return groups
