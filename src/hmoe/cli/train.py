"""`hmoe train`: train a recipe, or continue a run folder."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from hmoe.cli.arguments import Recipe
from hmoe.cli.plan import print_plan
from hmoe.cli.recipe import find_run, read_recipe_argument
from hmoe.config import recipes

_Run = Annotated[
    Path | None,
    typer.Option(
        help="Run folder; resumed if it exists. Default: runs/<recipe name>, or the run folder itself."
    ),
]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and its plan, then end.")]


def train_recipe(
    context: typer.Context,
    recipe: Recipe,
    run: _Run = None,
    dry_run: _DryRun = False,
) -> None:
    """Train a recipe until its budget is reached; the same command resumes a run that was stopped."""
    name, config = read_recipe_argument(recipe, context.args)
    if dry_run:
        typer.echo(recipes.dump_recipe(config))
        print_plan(config, as_json=False)
        return
    from hmoe.runs.run_folder import RunFolder

    default = Path(recipe) if find_run(recipe) == Path(recipe) else Path("runs") / name
    with RunFolder(run or default, config) as folder:  # refuses a busy folder before torch is imported
        from hmoe.cli.progress import ProgressBar
        from hmoe.train.console import Console
        from hmoe.train.loop import train_run

        with ProgressBar(sys.stdout, at_once=True) as bar:
            train_run(config, folder, Console(bar))
