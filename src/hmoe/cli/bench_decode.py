"""`hmoe bench decode`: a layer that serves one token."""

from typing import Annotated

import typer

from hmoe.cli.bench_options import RESULTS, Device, Dtypes, Out, Rounds, Threads


def time_decoding(
    shape: Annotated[list[str] | None, typer.Option(help="A shape by name; repeatable. Default: 0.4B and 64-experts.")] = None,
    tokens: Annotated[int, typer.Option(min=1, max=1024, help="Tokens at a time.")] = 1,
    dtype: Dtypes = None, device: Device = "cpu", rounds: Rounds = 15, threads: Threads = None, out: Out = RESULTS,
) -> None:  # fmt: skip
    """A layer that serves one token, against the time of reading its activated weights from memory."""
    from hmoe.bench.decode import bench
    from hmoe.bench.measure import Options, default_dtype

    options = Options(device, rounds, threads, out, typer.echo)
    typer.echo(f"written to {bench(shape, dtype or [default_dtype(device)], tokens, options)}")
