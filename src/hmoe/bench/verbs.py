"""The verbs of `hmoe bench`; torch is imported inside them."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure speed side by side, and write it down.")

Dtypes = Annotated[
    list[str] | None, typer.Option("--dtype", help="bfloat16, float16 or float32; repeatable. Default: bfloat16.")
]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Rounds = Annotated[int, typer.Option(min=3, max=10_000, help="Rounds of which the median is taken.")]
Threads = Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads. Default: PyTorch's.")]
Out = Annotated[Path, typer.Option(help="Folder for the dated JSON file.")]
RESULTS = Path("benchmarks/results")


@app.command("layer")
def layer(
    shape: Annotated[list[str] | None, typer.Option(help="A shape by name; repeatable. Default: those for the device.")] = None,
    dim: Annotated[int | None, typer.Option(min=1, help="Model width of a shape of your own.")] = None,
    widths: Annotated[str | None, typer.Option(help="Its expert widths: 864,1056,...")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Its experts per token. Default: 2.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Its tokens. Default: 4096.")] = None,
    against: Annotated[list[str] | None, typer.Option(help="hmoe, hmoe equal, hmoe loop, hmoe eager loop, transformers eager, "
                       "transformers grouped_mm, ScatterMoE, SonicMoE, MegaBlocks; repeatable. Default: all that are installed.")] = None,
    dtype: Dtypes = None, device: Device = "cpu", rounds: Rounds = 15, threads: Threads = None, out: Out = RESULTS,
) -> None:  # fmt: skip
    """The MoE layer beside a dense SwiGLU of the same activated FLOPs (the limit) and beside other libraries."""
    from hmoe.bench.layer import bench, own_shape

    wanted = own_shape(shape, dim, widths, top_k, tokens)
    path = bench(wanted, dtype or ["bfloat16"], device, rounds, against, threads, out, typer.echo)
    typer.echo(f"written to {path}")


@app.command("step")
def step(
    preset: Annotated[str, typer.Argument(help="A preset on the embedded corpus.")] = "quickstart",
    precision: Annotated[list[str] | None, typer.Option(help="float32 or bfloat16; repeatable. Default: float32.")] = None,
    rounds: Rounds = 12, threads: Threads = None, out: Out = RESULTS,
) -> None:  # fmt: skip
    """A training step of unequal experts against equal ones and dense, and where its time goes."""
    from hmoe.bench.step import bench

    typer.echo(f"written to {bench(preset, precision or ['float32'], rounds, threads, out, typer.echo)}")


@app.command("decode")
def decode(
    shape: Annotated[list[str] | None, typer.Option(help="A shape by name; repeatable. Default: 0.4B and 64-experts.")] = None,
    tokens: Annotated[int, typer.Option(min=1, max=1024, help="Tokens at a time.")] = 1,
    dtype: Dtypes = None, device: Device = "cpu", rounds: Rounds = 15, threads: Threads = None, out: Out = RESULTS,
) -> None:  # fmt: skip
    """A layer that serves one token, against the time of reading its activated weights from memory."""
    from hmoe.bench.decode import bench

    typer.echo(f"written to {bench(shape, dtype or ['bfloat16'], device, rounds, tokens, threads, out, typer.echo)}")


@app.command("model")
def model(
    preset: Annotated[str, typer.Argument(help="A preset with top-k experts in every layer.")] = "hmoe-0.4b-topk",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "bfloat16",
    prompt: Annotated[int, typer.Option(min=16, help="Tokens read at once.")] = 512,
    new: Annotated[int, typer.Option(min=1, help="Tokens written one by one, after 16.")] = 32,
    rounds: Rounds = 5, threads: Threads = None, out: Out = RESULTS,
) -> None:  # fmt: skip
    """A whole model, one sequence: reading a prompt and writing tokens, beside transformers' Mixtral of equal parameters."""
    from hmoe.bench.layer import check_dtypes
    from hmoe.bench.model import bench
    from hmoe.errors import missing_extra

    check_dtypes([dtype])
    try:
        path = bench(preset, dtype, prompt, new, rounds, threads, out, typer.echo)
    except ImportError:
        raise missing_extra("transformers' models", "hf") from None
    typer.echo(f"written to {path}")
