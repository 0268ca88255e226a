"""The verbs of `hmoe bench`; torch is imported inside them."""

from pathlib import Path
from typing import Annotated

import typer

from hmoe.cli.app import OVERRIDES

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure speed side by side, and write it down.")

Dtypes = Annotated[
    list[str] | None,
    typer.Option(
        "--dtype",
        help="bfloat16, float16 or float32; repeatable. Default: bfloat16 where the "
        "hardware multiplies it, else float32.",
    ),
]
Device = Annotated[str, typer.Option(help="cpu or cuda; cuda is timed by events and by the clock.")]
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


@app.command("step", context_settings=OVERRIDES)
def step(
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


@app.command("decode")
def decode(
    shape: Annotated[list[str] | None, typer.Option(help="A shape by name; repeatable. Default: 0.4B and 64-experts.")] = None,
    tokens: Annotated[int, typer.Option(min=1, max=1024, help="Tokens at a time.")] = 1,
    dtype: Dtypes = None, device: Device = "cpu", rounds: Rounds = 15, threads: Threads = None, out: Out = RESULTS,
) -> None:  # fmt: skip
    """A layer that serves one token, against the time of reading its activated weights from memory."""
    from hmoe.bench.decode import bench
    from hmoe.bench.measure import Options, default_dtype

    options = Options(device, rounds, threads, out, typer.echo)
    typer.echo(f"written to {bench(shape, dtype or [default_dtype(device)], tokens, options)}")


@app.command("model")
def model(
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
    from hmoe.errors import missing_extra

    chosen = dtype or default_dtype(device)
    check_dtypes([chosen])
    try:
        path = bench(preset, chosen, prompt, new, Options(device, rounds, threads, out, typer.echo))
    except ImportError:
        raise missing_extra("transformers' models", "hf") from None
    typer.echo(f"written to {path}")


@app.command("tiles")
def tiles(
    shape: Annotated[str, typer.Option(help="A layer's shape by name.")] = "0.4B-long",
    dtype: Annotated[str, typer.Option(help="bfloat16 or float16.")] = "bfloat16",
    out: Out = RESULTS,
) -> None:
    """On an NVIDIA GPU: every tile shape of every kernel; writes the fastest for HMOE_TILE_SHAPES, which nothing uses unasked."""
    from hmoe.bench.shapes import known_shape
    from hmoe.errors import ConfigError

    try:
        from hmoe.bench.tiles import bench
    except ImportError:
        raise ConfigError("bench tiles: triton is not installed: pip install triton") from None
    typer.echo(f"written to {bench(known_shape(shape), dtype, out, typer.echo)}")
