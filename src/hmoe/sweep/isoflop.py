"""Plans that compare families: at one size and budget, over a grid of learning rates, and at many of both. No torch."""

import math
from collections.abc import Mapping, Sequence

from hmoe.config.recipes import read_recipe
from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError
from hmoe.sweep.families import REFERENCE, Family, equalize_budget, list_families, scale_recipe
from hmoe.sweep.grid import locate_recipe
from hmoe.sweep.plan import SweepPlan, check_plan, set_budget

_Groups = list[dict[str, object]]


def build_families_plan(
    recipe: str,
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    families: Sequence[str] | None = None,
    rates: Mapping[str, float] | None = None,
) -> SweepPlan:
    """Return a plan of one model of each family at the recipe's budget.

    Args:
        recipe: preset or YAML file with unequal experts.
        seeds: of each family.
        overrides: of the recipe.
        families: names; None: all.
        rates: learning rate of each family; None: the recipe's.
    """
    config = read_recipe(recipe, overrides)[1]
    chosen = list_families(config, families)
    _check_rates(chosen, rates)
    groups = [_make_group(family, recipe, (), rates) for family in chosen]
    return _check("grid", groups, seeds, [*overrides, *equalize_budget(config)], _choose_baseline(chosen))


def build_tuning_plan(
    recipe: str,
    rates: Sequence[float],
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    families: Sequence[str] | None = None,
) -> SweepPlan:
    """Return a plan of each family with each of the same learning rates; controls have that of their source."""
    config = read_recipe(recipe, overrides)[1]
    if len(set(rates)) < 2:
        raise ConfigError(f"rates = {list(rates)}: a grid needs two learning rates or more", argument="rates")
    groups = [
        _make_group(family, recipe, (), {family.name: rate}, f",lr={rate:g}")
        for family in list_families(config, families)
        if family.control_of is None
        for rate in rates
    ]
    return _check("tuning", groups, seeds, [*overrides, *equalize_budget(config)], None)


def build_isoflop_plan(
    recipe: str,
    sizes: Sequence[float],
    budgets: Sequence[float],
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    families: Sequence[str] | None = None,
    rates: Mapping[str, float] | None = None,
) -> SweepPlan:
    """Return a plan of families x sizes, each run measured at every budget on its way to the largest.

    Args:
        recipe: preset or YAML file with unequal experts.
        sizes: factors of the recipe's size, see `scale_recipe`.
        budgets: in training FLOPs.
        seeds: of each family and size.
        overrides: of the recipe.
        families: names; None: all.
        rates: learning rate of each family at every size; None: the recipe's.
    """
    groups: _Groups = []
    chosen: list[Family] = []
    models: dict[object, float] = {}
    are_budgets = bool(budgets) and all(
        0 < budget < math.inf for budget in budgets
    )  # else the plan refuses them
    own = [*overrides, *(set_budget(max(budgets)) if are_budgets else ())]
    for factor in sizes:
        scaled = scale_recipe(read_recipe(recipe, own)[1], factor)
        config: RunConfig = read_recipe(recipe, [*own, *scaled])[1]
        chosen = list_families(config, families)
        _check_rates(chosen, rates)
        if config.model in models:
            raise ConfigError(
                f"sizes = {factor:g}: rounds to the model of {models[config.model]:g}", argument="sizes"
            )
        models[config.model] = factor
        groups += [
            _make_group(family, recipe, scaled, rates, f",x{factor:g}", f"x{factor:g}") for family in chosen
        ]
    return _check("isoflop", groups, seeds, overrides, None, budgets)


def _check_rates(families: Sequence[Family], rates: Mapping[str, float] | None) -> None:
    """Raise ConfigError for a rate of a family that is not trained by one of its own."""
    names = [family.name for family in families if family.control_of is None]
    for name in rates or ():
        if name not in names:
            raise ConfigError(f"rates = {name}: must be among {', '.join(names)}", argument="rates")


def _make_group(
    family: Family,
    recipe: str,
    scaled: Sequence[str],
    rates: Mapping[str, float] | None,
    suffix: str = "",
    size: str = "",
) -> dict[str, object]:
    group: dict[str, object] = {"name": family.name + suffix, "family": family.name, "size": size}
    if family.control_of is not None:
        return group | {"control_of": family.control_of + suffix}
    rate = (rates or {}).get(family.name)
    changes = (*scaled, *family.overrides, *(() if rate is None else (f"optim.lr={rate!r}",)))
    return group | {"recipe": locate_recipe(recipe), "overrides": list(changes)}


def _choose_baseline(families: Sequence[Family]) -> str | None:
    names = [family.name for family in families]
    return REFERENCE if REFERENCE in names else None


def _check(
    kind: str,
    groups: _Groups,
    seeds: Sequence[int],
    overrides: Sequence[str],
    baseline: str | None,
    budgets: Sequence[float] = (),
) -> SweepPlan:
    tree = {
        "kind": kind,
        "groups": groups,
        "seeds": list(seeds),
        "overrides": list(overrides),
        "baseline": baseline,
    }
    return check_plan(tree | {"budgets": sorted(budgets)}, "sweep")
