"""`hmoe train`: train a recipe, or continue a run folder."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from hmoe.cli.arguments import Recipe
from hmoe.cli.output import print_note
from hmoe.cli.plan import describe_plan, print_plan
from hmoe.cli.recipe import find_run, read_recipe_argument
from hmoe.cli.run_steps import list_run_steps
from hmoe.config import recipes
from hmoe.errors import ConfigError
from hmoe.runs.config_binding import is_run_folder
from hmoe.runs.summary import RunSummary

_Run = Annotated[
    Path | None,
    typer.Option(
        help="Run folder; resumed if it exists. Default: runs/<recipe name>, or the run folder itself."
    ),
]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and its plan, then end.")]
_AsJson = Annotated[
    bool, typer.Option("--json", help="With --dry-run: one JSON object, of the recipe and its plan.")
]


def _list_step_commands(run: RunSummary, is_finished: bool) -> list[str]:
    return [step.command for step in list_run_steps(run, is_finished)]


def train_recipe(
    context: typer.Context,
    recipe: Recipe,
    run: _Run = None,
    dry_run: _DryRun = False,
    as_json: _AsJson = False,
) -> None:
    """Train a recipe, or continue a run that was stopped.

    The same command resumes it bit for bit.
    """
    name, config = read_recipe_argument(recipe, context.args)
    if as_json and not dry_run:
        raise ConfigError("--json has no effect without --dry-run; remove it or add --dry-run")
    if dry_run and as_json:
        typer.echo(json.dumps({"recipe": config.model_dump(mode="json"), "plan": describe_plan(config)}))
        return
    if dry_run:
        typer.echo(recipes.dump_recipe(config))
        print_plan(config, as_json=False)
        return
    from hmoe.runs.run_folder import RunFolder

    own = find_run(recipe)
    if own is not None and run is not None and not is_run_folder(run):
        print_note(f"{run}: a new run of the recipe of {own}, from the beginning")
    # Refuses a busy folder before torch is imported.
    with RunFolder(run or own or Path("runs") / name, config) as folder:
        from hmoe.cli.progress import ProgressBar
        from hmoe.train.console import Console
        from hmoe.train.loop import train_run

        with ProgressBar(sys.stdout, at_once=True) as bar:
            train_run(config, folder, Console(bar, _list_step_commands))
