"""`hmoe train`: train a recipe, or continue a run folder."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hmoe.cli.arguments import Recipe
from hmoe.cli.output import print_note
from hmoe.cli.plan import describe_plan, print_plan
from hmoe.cli.recipe import find_run, read_recipe_argument
from hmoe.cli.run_steps import list_run_steps
from hmoe.config import recipes
from hmoe.config.processes import check_processes
from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError
from hmoe.runs.config_binding import is_run_folder
from hmoe.runs.summary import RunSummary
from hmoe.train.launch import ProcessNumbers, read_process_numbers

if TYPE_CHECKING:
    from hmoe.runs.run_folder import RunFolder

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

    torchrun starts it as several processes, which share the work (see parallel in the recipe).
    """
    launch = read_process_numbers()
    if as_json and not dry_run:
        raise ConfigError("--json has no effect without --dry-run; remove it or add --dry-run")
    if launch.rank > 0 and dry_run:  # the first one tells
        return
    if launch.size > 1 and not dry_run:
        _train_shared(recipe, context.args, run, launch)
        return
    name, config = read_recipe_argument(recipe, context.args)
    if dry_run and as_json:
        typer.echo(json.dumps({"recipe": config.model_dump(mode="json"), "plan": describe_plan(config)}))
        return
    if dry_run:
        typer.echo(recipes.dump_recipe(config))
        print_plan(config, as_json=False)
        return
    # Refuses a busy folder before torch is imported.
    with _open_folder(recipe, name, config, run) as folder:
        from hmoe.cli.progress import ProgressBar
        from hmoe.train.console import Console
        from hmoe.train.loop import train_run

        with ProgressBar(sys.stdout, at_once=True) as bar:
            train_run(config, folder, Console(bar, _list_step_commands))


def _open_folder(
    recipe: str, name: str, config: RunConfig, run: Path | None, writes: bool = True
) -> "RunFolder":
    from hmoe.runs.run_folder import RunFolder

    own = find_run(recipe)
    if own is not None and run is not None and not is_run_folder(run) and writes:
        print_note(f"{run}: a new run of the recipe of {own}, from the beginning")
    return RunFolder(run or own or Path("runs") / name, config, writes)


def _train_shared(recipe: str, overrides: list[str], run: Path | None, launch: ProcessNumbers) -> None:
    """Train as one of the processes that a launcher started; the first one alone writes and prints."""
    from hmoe.cli.progress import ProgressBar
    from hmoe.parallel.group import join_processes
    from hmoe.train.console import Console, SilentDisplay
    from hmoe.train.loop import train_run
    from hmoe.train.shared_run import check_shared_folder, find_shared_device, make_ranks

    with join_processes() as messages:
        with messages.together():
            name, config = read_recipe_argument(
                recipe, overrides, _say_nothing if launch.rank else print_note
            )
            check_processes(config, launch.size)
            device = find_shared_device(config, launch)
        with messages.together():
            folder = _open_folder(recipe, name, config, run, writes=launch.rank == 0)
        check_shared_folder(folder.path, messages)
        ranks = make_ranks(config, device, messages, launch.local_size)
        with folder, ProgressBar(sys.stdout, at_once=True) if not launch.rank else nullcontext(None) as bar:
            console = Console(bar or SilentDisplay(), _list_step_commands)
            train_run(config, folder, console, ranks)


def _say_nothing(text: str) -> None:
    """Leave what there is to say to the first process."""
