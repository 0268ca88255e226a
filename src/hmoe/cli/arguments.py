"""Arguments and options that several verbs share."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from hmoe.config import recipes
from hmoe.errors import ConfigError

# A verb with these settings takes words that are no options of its own: overrides of recipe keys.
OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}


def complete_recipe(incomplete: str) -> list[str]:
    """Return the presets that begin so, for the shell, with the files and folders that could be a recipe too.

    Where no preset does, the shell's own completion of paths is better.
    """
    presets = [name for name in recipes.list_presets() if name.startswith(incomplete)]
    try:
        entries = [entry for entry in os.scandir() if entry.name.startswith(incomplete or "\0")]
    except OSError:
        return presets
    paths = [
        f"{entry.name}/" if entry.is_dir() else entry.name
        for entry in entries
        if entry.is_dir() or entry.name.endswith((".yaml", ".yml"))
    ]
    return presets + sorted(paths) if presets else []


Recipe = Annotated[
    str,
    typer.Argument(
        help="Preset name, YAML file or run folder; then overrides: a.b=c or --a.b c.",
        autocompletion=complete_recipe,
    ),
]
AnyModel = Annotated[
    Path, typer.Argument(metavar="RUN|DIR", help="Run folder made by `hmoe train`, or Hugging Face folder.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object with exact numbers.")]
Temperature = Annotated[float, typer.Option(help="0 takes the most probable token.")]
TopKTokens = Annotated[int, typer.Option(help="Draw from the k most probable tokens; 0: from all.")]
TopPTokens = Annotated[float, typer.Option(help="Draw from the most probable tokens whose sum reaches p.")]
ServedPrecision = Annotated[
    Literal["float32", "bfloat16"] | None,
    typer.Option(help="Of weights and keys. Default: as the weights are stored."),
]
ServedContext = Annotated[
    int | None,
    typer.Option(
        min=2, max=2**24, help="Tokens of prompt and answer. Default: the length it was trained on."
    ),
]


def parse_precision(name: str) -> Any:
    """Return torch's type for the precision float32 or bfloat16; raise ConfigError for another."""
    if name not in ("float32", "bfloat16"):
        raise ConfigError(f"--precision {name}: must be float32 or bfloat16")
    import torch

    return getattr(torch, name)
