"""Plans that compare families: at one size and budget, over settings, and over sizes and budgets. No torch."""

import itertools
import math
from collections.abc import Mapping, Sequence

from hmoe.config.recipes import read_recipe
from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError
from hmoe.sweep.families import (
    REFERENCE,
    Family,
    equalize_budget,
    list_coefficients,
    list_families,
    scale_recipe,
)
from hmoe.sweep.grid import locate_recipe
from hmoe.sweep.plan import SweepPlan, check_plan, set_budget

_Groups = list[dict[str, object]]


def build_families_plan(
    recipe: str,
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    families: Sequence[str] | None = None,
    settings: Mapping[str, Sequence[str]] | None = None,
) -> SweepPlan:
    """Return a plan of one model of each family at the recipe's budget.

    Args:
        recipe: preset or YAML file with unequal experts.
        seeds: of each family.
        overrides: of the recipe.
        families: names; None: all.
        settings: overrides by family, such as its learning rate; None: the recipe's.
    """
    config = read_recipe(recipe, overrides)[1]
    chosen = list_families(config, families)
    _check_settings(chosen, settings)
    groups = [_make_group(family, recipe, (), settings) for family in chosen]
    return _check("grid", groups, seeds, [*overrides, *equalize_budget(config)], _choose_baseline(chosen))


def build_tuning_plan(
    recipe: str,
    seeds: Sequence[int],
    rates: Sequence[float] = (),
    loss_factors: Sequence[float] = (),
    overrides: Sequence[str] = (),
    families: Sequence[str] | None = None,
) -> SweepPlan:
    """Return a plan of each family with each of the same settings; controls are not tuned, they follow their source.

    Args:
        recipe: preset or YAML file with unequal experts.
        seeds: of each setting.
        rates: learning rates; (): the recipe's.
        loss_factors: of the coefficient of each built-in loss that a family has, in every combination; (): 1.
        overrides: of the recipe.
        families: names; None: all.

    Raises:
        ConfigError: for a grid of one setting, or what is wrong with the recipe.
    """
    config = read_recipe(recipe, overrides)[1]
    for name, values in (("rates", rates), ("loss_factors", loss_factors)):
        if len(set(values)) < len(values) or len(values) == 1:
            raise ConfigError(f"{name} = {list(values)}: a grid needs two or more that differ", argument=name)
    if not rates and not loss_factors:
        raise ConfigError("rates, loss_factors: give one of them or both", argument=("rates", "loss_factors"))
    groups = []
    for family in list_families(config, families):
        if family.control_of is None:
            moe = read_recipe(recipe, [*overrides, *family.overrides])[1].model.moe
            coefficients = {} if moe is None or not loss_factors else list_coefficients(moe)
            if not rates and not coefficients:
                raise ConfigError(
                    f"loss_factors: {family.name} has no built-in loss; leave it out of `families`, or give `rates`",
                    argument=("loss_factors", "families", "rates"),
                )
            groups += [
                _make_group(family, recipe, (), {family.name: changes}, _name_setting(changes))
                for changes in _list_settings(rates, coefficients, loss_factors)
            ]
    return _check("tuning", groups, seeds, [*overrides, *equalize_budget(config)], None)


def _list_settings(
    rates: Sequence[float], coefficients: Mapping[str, float], factors: Sequence[float]
) -> list[tuple[str, ...]]:
    """List every combination of a learning rate and of multiples of coefficients, as overrides."""
    grid = [[f"optim.lr={rate!r}" for rate in rates]] if rates else []
    for name, value in coefficients.items():
        # Rounded: 0.1 x 3 is meant as 0.3.
        grid.append([f"model.moe.{name}={float(f'{value * factor:.12g}')!r}" for factor in factors])
    return list(itertools.product(*grid))


def _name_setting(changes: Sequence[str]) -> str:
    pairs = [change.partition("=") for change in changes]
    return "".join(f",{key.rpartition('.')[2]}={float(value):.15g}" for key, _, value in pairs)


def build_isoflop_plan(
    recipe: str,
    sizes: Sequence[float],
    budgets: Sequence[float],
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    families: Sequence[str] | None = None,
    settings: Mapping[str, Sequence[str]] | None = None,
) -> SweepPlan:
    """Return a plan of families x sizes, each run measured at every budget on its way to the largest.

    Args:
        recipe: preset or YAML file with unequal experts.
        sizes: factors of the recipe's size, see `scale_recipe`.
        budgets: in training FLOPs.
        seeds: of each family and size.
        overrides: of the recipe.
        families: names; None: all.
        settings: overrides by family, at every size; None: the recipe's.
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
        _check_settings(chosen, settings)
        if config.model in models:
            raise ConfigError(
                f"sizes = {factor:g}: rounds to the model of {models[config.model]:g}", argument="sizes"
            )
        models[config.model] = factor
        groups += [
            _make_group(family, recipe, scaled, settings, f",x{factor:g}", f"x{factor:g}")
            for family in chosen
        ]
    return _check("isoflop", groups, seeds, overrides, None, budgets)


def _check_settings(families: Sequence[Family], settings: Mapping[str, Sequence[str]] | None) -> None:
    """Raise ConfigError for settings of a family without a recipe of its own, or that break what is held equal."""
    names = [family.name for family in families if family.control_of is None]
    for name in settings or ():
        if name not in names:
            raise ConfigError(f"rate or override of {name}: must be of a family among {', '.join(names)}")
        for change in (settings or {})[name]:
            # Anything else, such as a budget, data or a size, would make families unequal in what is not compared.
            if not change.startswith(("optim.", "model.moe.")):
                raise ConfigError(f"override of {name}: {change}: must be of optim or model.moe")


def _make_group(
    family: Family,
    recipe: str,
    scaled: Sequence[str],
    settings: Mapping[str, Sequence[str]] | None,
    suffix: str = "",
    size: str = "",
) -> dict[str, object]:
    group: dict[str, object] = {"name": family.name + suffix, "family": family.name, "size": size}
    if family.control_of is not None:
        return group | {"control_of": family.control_of + suffix}
    changes = (*scaled, *family.overrides, *(settings or {}).get(family.name, ()))
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
