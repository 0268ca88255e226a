"""What all verbs share: the app they register with, common arguments, and how they print."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hmoe.errors import ConfigError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Pretrain, evaluate and look inside language models whose experts differ in size.",
)  # fmt: skip

OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}
Recipe = Annotated[str, typer.Argument(help="Preset name, YAML file or run folder; then overrides: a.b=c or --a.b c.")]
AnyModel = Annotated[
    Path, typer.Argument(metavar="RUN|DIR", help="Run folder made by `hmoe train`, or Hugging Face folder.")
]


def precision_dtype(name: str) -> Any:
    """float32 or bfloat16 as torch's type."""
    if name not in ("float32", "bfloat16"):
        raise ConfigError(f"--precision {name}: must be float32 or bfloat16")
    import torch

    return getattr(torch, name)


def say(text: str) -> None:
    """One line on stderr."""
    shown = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c if c.isprintable() else " " for c in text)
    print(f"hmoe: {' '.join(shown.split())}", file=sys.stderr, flush=True)  # whatever a path or a key holds


def show(numbers: dict[str, Any], as_json: bool) -> None:
    """Names and numbers on stdout, aligned or as one JSON object."""
    if as_json:
        typer.echo(json.dumps(numbers))
        return
    for name, value in numbers.items():
        typer.echo(f"{name:28s} {_format(value)}")


def _format(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4f}" if isinstance(value, float) else str(value)
