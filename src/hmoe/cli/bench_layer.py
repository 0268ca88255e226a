"""`hmoe bench layer`: an MoE layer beside its limit and other libraries."""

from typing import Annotated

import typer

from hmoe.cli.bench_options import RESULTS, BenchDevice, BenchDtypes, BenchOut, BenchRounds, BenchThreads

_Shape = Annotated[
    list[str] | None, typer.Option(help="A shape by name; repeatable. Default: those for the device.")
]
_Dim = Annotated[int | None, typer.Option(min=1, help="Model width of a shape of your own.")]
_Widths = Annotated[str | None, typer.Option(help="Its expert widths: 864,1056,...")]
_TopK = Annotated[int | None, typer.Option(min=1, help="Its experts per token. Default: 2.")]
_Tokens = Annotated[int | None, typer.Option(min=1, help="Its tokens. Default: 4096.")]
_Against = Annotated[
    list[str] | None,
    typer.Option(
        help="hmoe, hmoe equal, hmoe triton, hmoe loop, hmoe eager loop, transformers eager, "
        "transformers grouped_mm, ScatterMoE, SonicMoE, MegaBlocks; repeatable. Default: all "
        "that can run here."
    ),
]
_Profile = Annotated[
    bool, typer.Option("--profile", help="On cuda: launches and longest kernels of the first of them.")
]


def time_layer(
    shape: _Shape = None,
    dim: _Dim = None,
    widths: _Widths = None,
    top_k: _TopK = None,
    tokens: _Tokens = None,
    against: _Against = None,
    profile: _Profile = False,
    dtype: BenchDtypes = None,
    device: BenchDevice = "cpu",
    rounds: BenchRounds = 15,
    threads: BenchThreads = None,
    out: BenchOut = RESULTS,
) -> None:
    """Time the MoE layer beside other libraries' layers.

    Also beside its limit, a dense SwiGLU of the same activated FLOPs.
    """
    from hmoe.bench.layer import bench_layer
    from hmoe.bench.measure import BenchOptions, choose_default_dtype
    from hmoe.bench.shapes import parse_own_shape

    shapes = parse_own_shape(shape, dim, widths, top_k, tokens)
    options = BenchOptions(device, rounds, threads, out, typer.echo)
    typer.echo(
        f"written to {bench_layer(shapes, dtype or [choose_default_dtype(device)], against, profile, options)}"
    )
