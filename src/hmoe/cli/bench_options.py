"""Options that the verbs of `hmoe bench` share."""

from pathlib import Path
from typing import Annotated

import typer

BenchDtypes = Annotated[
    list[str] | None,
    typer.Option(
        "--dtype",
        help="bfloat16, float16 or float32; repeatable. Default: bfloat16 where the "
        "hardware multiplies it, else float32.",
    ),
]
BenchDevice = Annotated[str, typer.Option(help="cpu or cuda; cuda is timed by events and by the clock.")]
BenchRounds = Annotated[int, typer.Option(min=3, max=10_000, help="Rounds of which the median is taken.")]
BenchThreads = Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads. Default: PyTorch's.")]
BenchOut = Annotated[Path, typer.Option(help="Folder for the dated JSON file.")]
RESULTS = Path("benchmarks/results")
