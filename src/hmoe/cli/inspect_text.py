"""`hmoe inspect RUN TEXT`: one text in the colours of what it activates, or one of its tokens in bars."""

import difflib
import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any

import typer

from hmoe.cli.output import print_note
from hmoe.cli.table import Column, Table, render_table
from hmoe.errors import ConfigError

if TYPE_CHECKING:
    from hmoe.analyze.show import ShownText, ShownToken
    from hmoe.runs.open_model import OpenedModel

_BAR_CELLS = 16


def print_text(opened: "OpenedModel", text: str, token: str | None, as_json: bool) -> None:
    """Print a text as a model read it: in colours on a terminal, as a table elsewhere, exact as JSON.

    Args:
        opened: the model.
        text: to be read.
        token: number or text of a token, whose experts are shown in every layer; None: all tokens.
        as_json: one JSON object.
    """
    from hmoe.analyze.show import list_token_values, show_text

    shown = show_text(opened.model, opened.tokenizer, text, begin=opened.begin)
    note_long_window(len(shown.tokens), opened)
    chosen = None if token is None else _choose_token(shown, token)
    if as_json:
        values = list_token_values(shown)
        picked = values if chosen is None else [values[chosen.index]]
        typer.echo(json.dumps({"text": text, "widths": list(shown.trace.widths), "tokens": picked}))
        return
    if _has_colours():
        from hmoe.figures.coloured_text import render_coloured_lines

        has_truecolor = os.environ.get("COLORTERM", "").lower() in ("truecolor", "24bit")
        typer.echo(render_coloured_lines(shown.pieces, has_truecolor=has_truecolor), nl=False, color=True)
    elif chosen is None:
        typer.echo(render_table(_lay_out_tokens(shown)), nl=False)
    if chosen is not None:
        typer.echo("\n".join(_draw_token(shown, chosen)))


def note_long_window(length: int, opened: "OpenedModel") -> None:
    """Say so where a model reads more tokens at once than in training: what it does there is no measure of it."""
    if length > opened.context_length:
        print_note(
            f"reads {length:,} tokens at once, more than the {opened.context_length:,} that the model was made for"
        )


def _has_colours() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM", "") != "dumb"


def _choose_token(shown: "ShownText", word: str) -> "ShownToken":
    """Return the token that a number or a text means."""
    if re.fullmatch("[0-9]{1,9}", word) and int(word) < len(shown.tokens):
        return shown.tokens[int(word)]
    matches = [token for token in shown.tokens if word and word in (token.text, token.text.strip())]
    if len(matches) == 1:
        return matches[0]
    if matches:
        places = ", ".join(str(token.index) for token in matches)
        raise ConfigError(f"--token {word!r}: occurs {len(matches)} times; give one of the numbers {places}")
    texts = {token.text.strip() or token.text: token.index for token in shown.tokens}
    (nearest,) = difflib.get_close_matches(word, texts, 1, 0)
    raise ConfigError(
        f"--token {word!r}: must be a number from 0 to {len(shown.tokens) - 1} or the text of a token; "
        f"nearest is {nearest!r} ({texts[nearest]})"
    )


def _lay_out_tokens(shown: "ShownText") -> Table:
    rows: list[dict[str, Any]] = []
    for token in shown.tokens:
        layers: dict[int, list[int]] = {}
        for expert in token.experts:
            layers.setdefault(expert.layer, []).append(expert.expert)
        experts = " ".join("+".join(map(str, chosen)) for chosen in layers.values())
        rows.append({**vars(token), "experts": experts})
    columns = [
        Column("index", "token", str),
        Column("text", "text", repr, is_text=True),
        Column("activated_ratio", "activated", "{:.1%}".format),
        Column("nll", "nll", "{:.2f}".format),
        Column("experts", "experts by layer", str, is_text=True),
    ]
    if not shown.trace.blocks:
        return Table(columns[:2] + columns[3:4], rows, ["a dense model: there are no experts"])
    legend = [
        "activated: share of all experts' hidden units, mean over MoE layers",
        "experts: their numbers in one MoE layer after another, joined by + where several serve the token",
    ]
    return Table(columns, rows, legend)


def _draw_token(shown: "ShownText", token: "ShownToken") -> list[str]:
    """Return a bar for each expert that served a token: as long as its gate."""
    ratio = "" if token.activated_ratio is None else f": {token.activated_ratio:.1%} of the hidden units"
    nll = "" if token.nll is None else f", {token.nll:.2f} nats"
    lines = [f"token {token.index} {token.text!r}{ratio}{nll}"]
    is_plain = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    mark = "#" if is_plain else "█"
    size = max((len(f"{width:,}") for width in shown.trace.widths), default=1)
    for expert in sorted(token.experts, key=lambda e: (e.layer, e.width, e.expert)):
        bar = mark * max(1, round(min(expert.gate, 1.0) * _BAR_CELLS))
        lines.append(
            f"  layer {expert.layer}  expert {expert.expert}  {expert.width:>{size},} units  gate {expert.gate:.3f}  "
            f"probability {expert.probability:.3f}  {bar}"
        )
    return lines
