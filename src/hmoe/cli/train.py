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
from hmoe.cli.processes import NumProcesses, StartOptions, end_at_once, read_launch, start_processes
from hmoe.cli.recipe import find_run, read_recipe_argument
from hmoe.cli.run_steps import list_run_steps
from hmoe.config import recipes
from hmoe.config.processes import check_processes
from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError
from hmoe.parallel.heartbeat import HEARTBEAT
from hmoe.parallel.process_numbers import ProcessNumbers
from hmoe.runs.config_binding import is_run_folder
from hmoe.runs.summary import RunSummary

if TYPE_CHECKING:
    from hmoe.runs.run_folder import RunFolder

_Run = Annotated[
    Path | None,
    typer.Option(
        help="Run folder; resumed if it exists. Default: runs/NAME of the recipe, or the run folder itself."
    ),
]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and its plan, then end.")]
_AsJson = Annotated[
    bool, typer.Option("--json", help="With --dry-run: one JSON object, of the recipe and its plan.")
]
_Restarts = Annotated[
    int | None,
    typer.Option(
        min=0, max=1_000_000,
        help="With --processes: starts again in a row without a new checkpoint, after one died or hangs. Default: 3.",
    ),
]  # fmt: skip
_Timeout = Annotated[
    float,
    typer.Option(min=10, max=86_400, help="Seconds without an answer after which a process is given up."),
]
_RESTARTS = 3


def _list_step_commands(run: RunSummary, is_finished: bool) -> list[str]:
    return [step.command for step in list_run_steps(run, is_finished)]


def train_recipe(
    context: typer.Context,
    recipe: Recipe,
    run: _Run = None,
    dry_run: _DryRun = False,
    processes: NumProcesses = None,
    restarts: _Restarts = None,
    timeout: _Timeout = 60.0,
    as_json: _AsJson = False,
) -> None:
    """Train a recipe, or continue a run that was stopped.

    The same command resumes it bit for bit.

    SIGTERM and Ctrl-C save and end it, SIGUSR1 saves and goes on. torchrun and Slurm can start it on several machines.
    """
    launch, starts_others = _read_train_launch(processes, restarts)
    if as_json and not dry_run:
        raise ConfigError("--json has no effect without --dry-run; remove it or add --dry-run")
    if launch.rank > 0 and dry_run:  # the first one tells
        return
    if launch.size > 1 and not dry_run:
        _train_shared(recipe, context.args, run, launch, timeout)
        return
    if starts_others and not dry_run:
        again = _RESTARTS if restarts is None else restarts
        _start_shared(context, recipe, run, StartOptions(processes or 1, again, timeout))
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


def _read_train_launch(processes: int | None, restarts: int | None) -> tuple[ProcessNumbers, bool]:
    numbers, starts_others = read_launch(processes)
    if restarts is not None and processes in (None, 1):
        raise ConfigError("--restarts has no effect without --processes; remove it or add --processes")
    if restarts is not None and numbers.size > 1 and not HEARTBEAT.has_launcher:
        raise ConfigError("--restarts has no effect on processes that another launcher started; remove it")
    return numbers, starts_others


def _open_folder(
    recipe: str, name: str, config: RunConfig, run: Path | None, writes: bool = True
) -> "RunFolder":
    from hmoe.runs.run_folder import RunFolder

    own = find_run(recipe)
    if own is not None and run is not None and not is_run_folder(run) and writes:
        print_note(f"{run}: a new run of the recipe of {own}, from the beginning")
    return RunFolder(run or own or Path("runs") / name, config, writes)


def _start_shared(context: typer.Context, recipe: str, run: Path | None, options: StartOptions) -> None:
    """Start processes that train, after what can be told of the recipe and the folder was told once."""
    from hmoe.checkpoint.manifest import list_checkpoint_steps
    from hmoe.runs.run_folder import RunFolder

    name, config = read_recipe_argument(recipe, context.args, _say_nothing)
    check_processes(config, options.num_processes)
    path = run or find_run(recipe) or Path("runs") / name
    with RunFolder(path, config):
        logs = path / "logs"
    start_processes(context, options, logs, lambda: list_checkpoint_steps(path)[:1])


def _train_shared(
    recipe: str, overrides: list[str], run: Path | None, launch: ProcessNumbers, timeout: float
) -> None:
    """Train as one of the processes that a launcher started; the first one alone writes and prints."""
    from hmoe.cli.progress import ProgressBar
    from hmoe.parallel.group import join_processes, take_device
    from hmoe.train.console import Console, SilentDisplay
    from hmoe.train.loop import train_run
    from hmoe.train.shared_run import check_shared_folder, make_ranks

    with join_processes(timeout, give_up=end_at_once) as messages:
        with messages.together():
            name, config = read_recipe_argument(
                recipe, overrides, _say_nothing if launch.rank else print_note
            )
            check_processes(config, launch.size)
            device = take_device(config.train.device, launch)
        with messages.together():
            folder = _open_folder(recipe, name, config, run, writes=launch.rank == 0)
        check_shared_folder(folder.path, messages)
        ranks = make_ranks(config, device, messages, launch.local_size)
        with folder, ProgressBar(sys.stdout, at_once=True) if not launch.rank else nullcontext(None) as bar:
            console = Console(bar or SilentDisplay(), _list_step_commands)
            train_run(config, folder, console, ranks)


def _say_nothing(text: str) -> None:
    """Leave what there is to say to the first process."""
