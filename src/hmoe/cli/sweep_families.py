"""`hmoe sweep families`, `tuning`, `isoflop` and `ablation`: do unequal experts pay, and which part of them does."""

from collections.abc import Sequence
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

_Base = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="Preset or YAML file with unequal experts; then overrides: a.b=c or --a.b c.",
        autocompletion=complete_recipe,
    ),
]
_Families = Annotated[
    str | None,
    typer.Option(
        metavar="A,B",
        help="Of dense, equal-topk, equal-topp, unequal-topk, control-topk, unequal-topp, control-topp. Default: all.",
    ),
]
_Rates = Annotated[str | None, typer.Option(metavar="A,B", help="Learning rates, the same for each family.")]
_LossFactors = Annotated[
    str | None,
    typer.Option(
        metavar="A,B",
        help="Factors of the coefficient of each built-in loss that a family has, in every combination.",
    ),
]
_FamilyRates = Annotated[
    str | None,
    typer.Option(metavar="FAMILY=RATE,...", help="Learning rate of each family. Default: the recipe's."),
]
_FamilyOverrides = Annotated[
    list[str] | None,
    typer.Option(metavar="FAMILY:KEY=VALUE", help="Override of one family; may be given several times."),
]
_Budgets = Annotated[
    str, typer.Option(metavar="A,B", help="Training FLOPs at which a run is measured; the largest ends it.")
]
_Sizes = Annotated[str, typer.Option(metavar="A,B", help="Factors of the recipe's heads, width and layers.")]
_Ablation = Annotated[
    str,
    typer.Argument(metavar="WHAT", help="losses, strategies, ratio, penalty, k, p, experts or rules."),
]


def sweep_families(
    recipe: _Base,
    out: SweepOut,
    context: typer.Context,
    families: _Families = None,
    rates: _FamilyRates = None,
    override: _FamilyOverrides = None,
    seeds: SweepSeeds = 3,
    add: SweepAdd = 0,
    processes: SweepProcesses = None,
    dry_run: SweepDryRun = False,
    retry: SweepRetry = False,
    as_json: AsJson = False,
) -> None:
    """Compare unequal experts with all other families.

    Dense, equal, and the uniform control: one size, one budget, equal FLOPs, paired seeds.
    """
    from hmoe.cli.sweep_run import SweepOptions, run_plan
    from hmoe.sweep.isoflop import build_families_plan

    plan = build_families_plan(
        recipe, range(seeds), context.args, _split_names(families), _parse_settings(rates, override)
    )
    run_plan(plan, SweepOptions(out, processes, add, dry_run, retry, as_json))


def sweep_tuning(
    recipe: _Base,
    out: SweepOut,
    context: typer.Context,
    rates: _Rates = None,
    loss_factors: _LossFactors = None,
    families: _Families = None,
    seeds: SweepSeeds = 1,
    add: SweepAdd = 0,
    processes: SweepProcesses = None,
    dry_run: SweepDryRun = False,
    retry: SweepRetry = False,
    as_json: AsJson = False,
) -> None:
    """Try the same settings for each family.

    Learning rates, coefficients of its losses, or both.
    """
    from hmoe.cli.sweep_run import SweepOptions, run_plan
    from hmoe.sweep.isoflop import build_tuning_plan

    plan = build_tuning_plan(
        recipe,
        range(seeds),
        _parse_numbers("--rates", rates),
        _parse_numbers("--loss-factors", loss_factors),
        context.args,
        _split_names(families),
    )
    run_plan(plan, SweepOptions(out, processes, add, dry_run, retry, as_json))


def sweep_isoflop(
    recipe: _Base,
    out: SweepOut,
    context: typer.Context,
    budgets: _Budgets,
    sizes: _Sizes = "0.35,0.5,0.7,1",
    families: _Families = None,
    rates: _FamilyRates = None,
    override: _FamilyOverrides = None,
    seeds: SweepSeeds = 2,
    add: SweepAdd = 0,
    processes: SweepProcesses = None,
    dry_run: SweepDryRun = False,
    retry: SweepRetry = False,
    as_json: AsJson = False,
) -> None:
    """Compare families over sizes and budgets.

    The paper's figure 4, with fits and intervals.
    """
    from hmoe.cli.sweep_run import SweepOptions, run_plan
    from hmoe.sweep.isoflop import build_isoflop_plan

    plan = build_isoflop_plan(
        recipe,
        _parse_numbers("--sizes", sizes),
        _parse_numbers("--budgets", budgets),
        range(seeds),
        context.args,
        _split_names(families),
        _parse_settings(rates, override),
    )
    run_plan(plan, SweepOptions(out, processes, add, dry_run, retry, as_json))


def sweep_ablation(
    ablation: _Ablation,
    recipe: _Base,
    out: SweepOut,
    context: typer.Context,
    seeds: SweepSeeds = 3,
    baseline: SweepBaseline = None,
    controls: SweepControls = False,
    add: SweepAdd = 0,
    processes: SweepProcesses = None,
    dry_run: SweepDryRun = False,
    retry: SweepRetry = False,
    as_json: AsJson = False,
) -> None:
    """Change one thing of a recipe, as the paper does.

    losses (figures 3, 5), strategies (figure 6), ratio (figure 10), penalty, k, p, experts, rules.
    """
    from hmoe.cli.sweep_run import SweepOptions, run_plan
    from hmoe.sweep.ablations import build_ablation_plan

    plan = build_ablation_plan(ablation, recipe, range(seeds), context.args, baseline, controls)
    run_plan(plan, SweepOptions(out, processes, add, dry_run, retry, as_json))


def _split_names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",")]


def _parse_numbers(flag: str, text: str | None) -> list[float]:
    try:
        return [float(part) for part in text.split(",")] if text is not None else []
    except ValueError:
        raise ConfigError(f"{flag} {text}: must be numbers with commas between, such as 0.5,1") from None


def _parse_settings(rates: str | None, overrides: Sequence[str] | None) -> dict[str, list[str]]:
    """Return the overrides of each family, of FAMILY=RATE,... and of FAMILY:KEY=VALUE."""
    settings: dict[str, list[str]] = {}
    for part in () if rates is None else rates.split(","):
        name, _, rate = (word.strip() for word in part.partition("="))
        if name in settings:
            raise ConfigError(f"--rates {rates}: {name} is given twice")
        try:
            settings[name] = [f"optim.lr={float(rate)!r}"]
        except ValueError:
            raise ConfigError(f"--rates {rates}: must be FAMILY=RATE, with commas between") from None
    for text in overrides or ():
        name, colon, change = text.partition(":")
        change = change.removeprefix("--")
        key = change.partition("=")[0]
        own = settings.setdefault(name, [])
        if not (colon and name and key and "=" in change):
            raise ConfigError(
                f"--override {text}: must be FAMILY:KEY=VALUE, such as unequal-topk:optim.lr=0.003"
            )
        if any(other.partition("=")[0] == key for other in own):
            raise ConfigError(f"--override {text}: {key} of {name} is given twice")
        own.append(change)
    return settings
