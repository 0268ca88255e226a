"""`hmoe bench tiles`: tile shapes of the Triton kernels."""

from typing import Annotated

import typer

from hmoe.cli.bench_options import RESULTS, BenchOut
from hmoe.errors import ConfigError

_Shape = Annotated[str, typer.Option(help="A layer's shape by name.")]
_Dtype = Annotated[str, typer.Option(help="bfloat16 or float16.")]


def time_tile_shapes(
    shape: _Shape = "0.4B-long",
    dtype: _Dtype = "bfloat16",
    out: BenchOut = RESULTS,
) -> None:
    """Time every tile shape of the Triton kernels.

    On an NVIDIA GPU; the fastest are written, for HMOE_TILE_SHAPES.
    """
    from hmoe.bench.shapes import get_shape

    try:
        from hmoe.bench.tiles import bench_tiles
    except ImportError:
        raise ConfigError("bench tiles: triton is not installed: pip install triton") from None
    typer.echo(f"written to {bench_tiles(get_shape(shape), dtype, out, typer.echo)}")
