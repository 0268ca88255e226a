"""Options that the verbs of `hmoe sweep` share."""

from pathlib import Path
from typing import Annotated

import typer

SweepOut = Annotated[
    Path, typer.Option(metavar="DIR", help="Folder of the sweep; continued if it was begun.")
]
SweepSeeds = Annotated[int, typer.Option(min=1, max=10_000, help="Seeds of each recipe, from 0 on.")]
SweepAdd = Annotated[
    int, typer.Option(min=0, max=10_000, help="Seeds to add to those of a sweep that was begun.")
]
SweepProcesses = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=1024,
        help="Runs at a time. Default: one for each GPU; without one, for each CPU core, as far as memory goes.",
    ),
]
SweepDryRun = Annotated[
    bool, typer.Option("--dry-run", help="Measure a few steps, print runs, FLOPs and hours, then end.")
]
SweepRetry = Annotated[bool, typer.Option("--retry", help="Train runs again that have failed.")]
SweepBaseline = Annotated[
    str | None, typer.Option(metavar="NAME", help="Row from which the others are told apart, seed by seed.")
]
SweepControls = Annotated[
    bool,
    typer.Option(
        "--controls",
        help="Add the uniform control of each run whose experts differ in width, when it is finished.",
    ),
]
