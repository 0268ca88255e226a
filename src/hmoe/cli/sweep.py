"""`hmoe sweep grid` and `run`: many trainings as one question."""

from pathlib import Path
from typing import Annotated

import typer

from hmoe.cli.arguments import AsJson, complete_recipe
from hmoe.cli.sweep_options import (
    SweepAdd,
    SweepBaseline,
    SweepControls,
    SweepDryRun,
    SweepOut,
    SweepProcesses,
    SweepRetry,
    SweepSeeds,
)
from hmoe.errors import ConfigError


def _complete_plan(incomplete: str) -> list[str]:
    """Return the shipped plans that begin so, for the shell."""
    from hmoe.sweep.shipped import list_shipped_plans

    return [name for name in list_shipped_plans() if name.startswith(incomplete)]


_Recipes = Annotated[
    list[str],
    typer.Argument(
        metavar="RECIPE...",
        help="Presets or YAML files, or NAME=RECIPE; then overrides of all: a.b=c.",
        autocompletion=complete_recipe,
    ),
]
_Vary = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=A,B",
        help="Recipe key and its values, such as optim.lr=1e-3,3e-3; repeatable, every combination is trained.",
    ),
]
_Plan = Annotated[
    str,
    typer.Argument(
        metavar="PLAN",
        help="A plan: name of one that is shipped, YAML file, or sweep folder; then overrides of all recipes.",
        autocompletion=_complete_plan,
    ),
]
_PlanSeeds = Annotated[
    int | None,
    typer.Option(min=1, max=10_000, help="Seeds of each recipe, from 0 on. Default: those of the plan."),
]


def sweep_grid(
    recipes: _Recipes,
    out: SweepOut,
    vary: _Vary = None,
    seeds: SweepSeeds = 1,
    controls: SweepControls = False,
    baseline: SweepBaseline = None,
    add: SweepAdd = 0,
    processes: SweepProcesses = None,
    dry_run: SweepDryRun = False,
    retry: SweepRetry = False,
    as_json: AsJson = False,
) -> None:
    """Train recipes x values of keys x seeds.

    Then compare them; the same command continues it.
    """
    from hmoe.cli.sweep_run import SweepOptions, run_plan
    from hmoe.sweep.grid import build_grid_plan

    words, overrides = _split_overrides(recipes)
    plan = build_grid_plan(words, _parse_values(vary or []), range(seeds), overrides, controls, baseline)
    run_plan(plan, SweepOptions(out, processes, add, dry_run, retry, as_json))


def sweep_plan(
    plan: _Plan,
    context: typer.Context,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the sweep; continued if it was begun.")
    ] = None,
    seeds: _PlanSeeds = None,
    add: SweepAdd = 0,
    processes: SweepProcesses = None,
    dry_run: SweepDryRun = False,
    retry: SweepRetry = False,
    as_json: AsJson = False,
) -> None:
    """Train what a plan says, or continue a sweep folder.

    Shipped: neighbours (routers at equal FLOPs), rectify, rectify-flops, rectify-scratch, hyper, hyper-flops, upcycle.
    """
    from hmoe.cli.sweep_run import SweepOptions, run_plan
    from hmoe.sweep.plan import PLAN, read_plan
    from hmoe.sweep.shipped import change_plan, list_shipped_plans, read_shipped_plan

    folder = Path(plan)
    # With a folder to write to, a shipped name is the plan, also where the folder has the same name.
    if (folder / PLAN).is_file() and not (plan in list_shipped_plans() and out is not None):
        if out is not None and out.resolve() != folder.resolve():
            raise ConfigError(f"--out {out}: has no effect with a sweep folder, {plan}; remove it")
        _refuse_changes(plan, context.args, seeds)
        out, chosen = folder, read_plan(folder / PLAN)
    else:
        chosen = read_plan(folder) if plan.endswith((".yaml", ".yml")) else read_shipped_plan(plan)
        if context.args or seeds is not None:
            chosen = change_plan(chosen, context.args, None if seeds is None else range(seeds))
    if out is None:
        raise ConfigError("--out: missing, a new sweep needs a folder")
    run_plan(chosen, SweepOptions(out, processes, add, dry_run, retry, as_json))


def _refuse_changes(folder: str, overrides: list[str], seeds: int | None) -> None:
    """Raise ConfigError for what a sweep that was begun cannot change."""
    if overrides:
        raise ConfigError(f"{overrides[0]}: the recipes of a sweep folder, {folder}, are fixed; remove it")
    if seeds is not None:
        raise ConfigError(f"--seeds {seeds}: a sweep folder, {folder}, has its seeds; --add adds to them")


def _split_overrides(words: list[str]) -> tuple[list[str], list[str]]:
    """Return recipes, and overrides of all of them: a.b=c or --a.b c."""
    from hmoe.config.recipe_errors import list_recipe_keys

    keys, recipes, overrides = list_recipe_keys(), [], []
    rest = iter(words)
    for word in rest:
        if word.startswith("--"):
            overrides += [word] if "=" in word else [word, next(rest, "")]
        elif word.partition("=")[0] in keys or "." in word.partition("=")[0] * ("=" in word):
            overrides.append(word)  # a key with a dot that is none is refused as one
        else:
            recipes.append(word)
    if not recipes:
        raise ConfigError(f"{words[0]}: is an override; a preset or a YAML file comes first")
    return recipes, overrides


def _parse_values(words: list[str]) -> dict[str, list[str]]:
    """Return the values of each key; those in brackets are one value each."""
    values: dict[str, list[str]] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not (key and equals and text):
            raise ConfigError(f"--vary {word}: must be KEY=A,B")
        if key in values:
            raise ConfigError(f"--vary {word}: {key} is given twice")
        values[key] = _split_values(text)
    return values


def _split_values(text: str) -> list[str]:
    """Return the parts between commas that stand in no brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]
