"""`hmoe bench layer`: an MoE layer beside its limit and other libraries."""

from typing import Annotated

import typer

from hmoe.cli.bench_options import RESULTS, Device, Dtypes, Out, Rounds, Threads


def time_layer(
    shape: Annotated[list[str] | None, typer.Option(help="A shape by name; repeatable. Default: those for the device.")] = None,
    dim: Annotated[int | None, typer.Option(min=1, help="Model width of a shape of your own.")] = None,
    widths: Annotated[str | None, typer.Option(help="Its expert widths: 864,1056,...")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Its experts per token. Default: 2.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Its tokens. Default: 4096.")] = None,
    against: Annotated[list[str] | None, typer.Option(help="hmoe, hmoe equal, hmoe triton, hmoe loop, hmoe eager loop, "
                       "transformers eager, transformers grouped_mm, ScatterMoE, SonicMoE, MegaBlocks; repeatable. Default: all that can "
                       "run here.")] = None,
    profile: Annotated[bool, typer.Option("--profile", help="On cuda: launches and longest kernels of the first of them.")] = False,
    dtype: Dtypes = None, device: Device = "cpu", rounds: Rounds = 15, threads: Threads = None, out: Out = RESULTS,
) -> None:  # fmt: skip
    """The MoE layer beside a dense SwiGLU of the same activated FLOPs (the limit) and beside other libraries."""
    from hmoe.bench.layer import bench
    from hmoe.bench.measure import Options, default_dtype
    from hmoe.bench.shapes import own_shape

    wanted = own_shape(shape, dim, widths, top_k, tokens)
    options = Options(device, rounds, threads, out, typer.echo)
    typer.echo(f"written to {bench(wanted, dtype or [default_dtype(device)], against, profile, options)}")
