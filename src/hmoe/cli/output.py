"""How verbs print: notes on stderr, names and numbers on stdout."""

import json
import sys
from typing import Any

import typer


def print_note(text: str) -> None:
    """Print one line on stderr, whatever characters a path or a key in it holds."""
    # Half characters of names that are not UTF-8 cannot be encoded, and control characters could rewrite the line.
    shown = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c if c.isprintable() else " " for c in text)
    print(f"hmoe: {' '.join(shown.split())}", file=sys.stderr, flush=True)


def print_numbers(numbers: dict[str, Any], as_json: bool) -> None:
    """Print names and numbers on stdout, aligned or as one JSON object."""
    if as_json:
        typer.echo(json.dumps(numbers))
        return
    for name, value in numbers.items():
        typer.echo(f"{name:28s} {_format(value)}")


def _format(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return (
        f"{value:,}"
        if isinstance(value, int)
        else f"{value:,.4f}"
        if isinstance(value, float)
        else str(value)
    )
