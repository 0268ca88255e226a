"""`hmoe bench tiles`: tile shapes of the Triton kernels."""

from typing import Annotated

import typer

from hmoe.cli.bench_options import RESULTS, Out
from hmoe.errors import ConfigError


def time_tile_shapes(
    shape: Annotated[str, typer.Option(help="A layer's shape by name.")] = "0.4B-long",
    dtype: Annotated[str, typer.Option(help="bfloat16 or float16.")] = "bfloat16",
    out: Out = RESULTS,
) -> None:
    """On an NVIDIA GPU: every tile shape of every kernel; writes the fastest for HMOE_TILE_SHAPES, which nothing uses unasked."""
    from hmoe.bench.shapes import known_shape

    try:
        from hmoe.bench.tiles import bench
    except ImportError:
        raise ConfigError("bench tiles: triton is not installed: pip install triton") from None
    typer.echo(f"written to {bench(known_shape(shape), dtype, out, typer.echo)}")
