"""`hmoe bench step`: a training step, and where its time goes."""

from typing import Annotated

import typer

from hmoe.cli.bench_options import RESULTS, Device, Out, Rounds, Threads


def time_step(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="Preset name or YAML file; then overrides: a.b=c or --a.b c. The paper's presets "
                      "need data.path=corpus data.tokenizer=bytes where their data is not at hand.")] = "quickstart",
    precision: Annotated[list[str] | None, typer.Option(help="float32 or bfloat16; repeatable. Default: the recipe's.")] = None,
    alone: Annotated[bool, typer.Option("--alone", help="Without the equal and dense siblings.")] = False,
    device: Device = "cpu", rounds: Rounds = 12, threads: Threads = None, out: Out = RESULTS,
) -> None:  # fmt: skip
    """A training step of unequal experts against equal ones and dense, and where its time goes."""
    from hmoe.bench.measure import Options
    from hmoe.bench.step import bench

    options = Options(device, rounds, threads, out, typer.echo)
    typer.echo(f"written to {bench(recipe, context.args, precision or [], alone, options)}")
