"""`hmoe bench decode`: a layer that serves one token."""

from typing import Annotated

import typer

from hmoe.cli.bench_options import RESULTS, BenchDevice, BenchDtypes, BenchOut, BenchRounds, BenchThreads

_Shape = Annotated[
    list[str] | None, typer.Option(help="A shape by name; repeatable. Default: 0.4B and 64-experts.")
]
_Tokens = Annotated[int, typer.Option(min=1, max=1024, help="Tokens at a time.")]


def time_decoding(
    shape: _Shape = None,
    tokens: _Tokens = 1,
    dtype: BenchDtypes = None,
    device: BenchDevice = "cpu",
    rounds: BenchRounds = 15,
    threads: BenchThreads = None,
    out: BenchOut = RESULTS,
) -> None:
    """Time a layer that serves one token at a time.

    Against reading its activated weights from memory.
    """
    from hmoe.bench.decode import bench_decode
    from hmoe.bench.measure import BenchOptions, choose_default_dtype

    options = BenchOptions(device, rounds, threads, out, typer.echo)
    typer.echo(f"written to {bench_decode(shape, dtype or [choose_default_dtype(device)], tokens, options)}")
