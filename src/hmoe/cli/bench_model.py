"""`hmoe bench model`: a whole model, one sequence."""

from typing import Annotated

import typer

from hmoe.cli.bench_options import RESULTS, Device, Out, Rounds, Threads
from hmoe.errors import missing_extra


def time_model(
    preset: Annotated[str, typer.Argument(help="A preset with top-k experts in every layer.")] = "hmoe-0.4b-topk",
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16. Default: bfloat16 where the hardware multiplies it, "
                     "else float32.")] = None,
    prompt: Annotated[int, typer.Option(min=16, help="Tokens read at once.")] = 512,
    new: Annotated[int, typer.Option(min=1, help="Tokens written one by one, after 16.")] = 32,
    device: Device = "cpu", rounds: Rounds = 5, threads: Threads = None, out: Out = RESULTS,
) -> None:  # fmt: skip
    """A whole model, one sequence: reading a prompt and writing tokens, beside transformers' Mixtral of equal parameters."""
    from hmoe.bench.measure import Options, default_dtype
    from hmoe.bench.model import bench
    from hmoe.bench.shapes import check_dtypes

    chosen = dtype or default_dtype(device)
    check_dtypes([chosen])
    try:
        path = bench(preset, chosen, prompt, new, Options(device, rounds, threads, out, typer.echo))
    except ImportError:
        raise missing_extra("transformers' models", "hf") from None
    typer.echo(f"written to {path}")
