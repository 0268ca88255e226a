"""`hmoe bench step`: a training step, and where its time goes."""

from typing import Annotated

import typer

from hmoe.cli.arguments import complete_recipe
from hmoe.cli.bench_options import RESULTS, BenchDevice, BenchOut, BenchRounds, BenchThreads
from hmoe.cli.processes import (
    NumProcesses,
    StartOptions,
    choose_echo,
    join_workers,
    read_launch,
    start_processes,
)

_Recipe = Annotated[
    str,
    typer.Argument(
        help="Preset name or YAML file; then overrides: a.b=c or --a.b c. The paper's presets need "
        "data.path=corpus data.tokenizer=bytes where their data is not at hand.",
        autocompletion=complete_recipe,
    ),
]
_Precision = Annotated[
    list[str] | None, typer.Option(help="float32 or bfloat16; repeatable. Default: the recipe's.")
]
_Alone = Annotated[
    bool, typer.Option("--alone", help="Without the equal and dense siblings; tells the memory, too.")
]


def time_step(
    context: typer.Context,
    recipe: _Recipe = "quickstart",
    precision: _Precision = None,
    alone: _Alone = False,
    device: BenchDevice = "cpu",
    rounds: BenchRounds = 12,
    threads: BenchThreads = None,
    processes: NumProcesses = None,
    out: BenchOut = RESULTS,
) -> None:
    """Time a training step and its parts.

    Unequal experts against equal ones and dense.
    """
    numbers, starts_others = read_launch(processes)
    if starts_others:
        start_processes(context, StartOptions(processes or 1))
    from hmoe.bench.measure import BenchOptions
    from hmoe.bench.step import bench_step

    with join_workers(numbers, device) as workers:
        say = choose_echo(workers)
        options = BenchOptions(device, rounds, threads, out, say, workers)
        say(f"written to {bench_step(recipe, context.args, precision or [], alone, options)}")
