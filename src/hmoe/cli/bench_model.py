"""`hmoe bench model`: a whole model, one sequence."""

from typing import Annotated

import typer

from hmoe.cli.arguments import complete_recipe
from hmoe.cli.bench_options import RESULTS, BenchDevice, BenchOut, BenchRounds, BenchThreads
from hmoe.errors import make_missing_extra_error

_Preset = Annotated[
    str,
    typer.Argument(help="A preset with top-k experts in every layer.", autocompletion=complete_recipe),
]
_Dtype = Annotated[
    str | None,
    typer.Option(
        help="float32 or bfloat16. Default: bfloat16 where the hardware multiplies it, else float32."
    ),
]
_Prompt = Annotated[int, typer.Option(min=16, help="Tokens read at once.")]
_New = Annotated[int, typer.Option(min=1, help="Tokens written one by one, after 16.")]


def time_model(
    preset: _Preset = "hmoe-0.4b-topk",
    dtype: _Dtype = None,
    prompt: _Prompt = 512,
    new: _New = 32,
    device: BenchDevice = "cpu",
    rounds: BenchRounds = 5,
    threads: BenchThreads = None,
    out: BenchOut = RESULTS,
) -> None:
    """Time a model that reads a prompt and writes tokens.

    Beside transformers' Mixtral of equal parameters.
    """
    from hmoe.bench.measure import BenchOptions, choose_default_dtype
    from hmoe.bench.model import bench_model
    from hmoe.bench.shapes import check_dtypes

    chosen = dtype or choose_default_dtype(device)
    check_dtypes([chosen])
    try:
        path = bench_model(
            preset, chosen, prompt, new, BenchOptions(device, rounds, threads, out, typer.echo)
        )
    except ImportError:
        raise make_missing_extra_error("transformers' models", "hf") from None
    typer.echo(f"written to {path}")
