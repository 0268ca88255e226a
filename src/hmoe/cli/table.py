"""The one renderer of tables: text that fits the terminal, Markdown, LaTeX, CSV or JSON, of the same records."""

import csv
import io
import json
import math
import re
import shutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hmoe.errors import ConfigError

FOR_PEOPLE = ("text", "markdown", "latex")
FORMS = (*FOR_PEOPLE, "csv", "json")
_GAP = "  "
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
}


def _show_plainly(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: of the value in a row, and in CSV and JSON.
        title: its heading for people.
        show: returns a value as people read it; exact forms do not use it.
        is_text: whether it is aligned to the left.
        forms: in which it is a column; JSON shows every value of a row.
    """

    name: str
    title: str
    show: Callable[[Any], str] = _show_plainly
    is_text: bool = False
    forms: tuple[str, ...] = FORMS


@dataclass(frozen=True)
class Table:
    """Records that are to be shown, one a row.

    Attributes:
        columns: those shown; one without any value is left out for people.
        rows: exact values by name; None where there is none. JSON shows all of a row, also what has no column.
        notes: sentences below the table.
    """

    columns: Sequence[Column]
    rows: Sequence[dict[str, Any]]
    notes: Sequence[str] = field(default=())


def render_table(table: Table, form: str = "text", width: int | None = None) -> str:
    """Return a table in one of FORMS, ending with a newline; `width` is that of the terminal by default."""
    if form not in FORMS:
        raise ConfigError(f"form = {form}: must be one of {', '.join(FORMS)}", argument="form")
    if form == "json":
        return json.dumps({"rows": list(table.rows), "notes": list(table.notes)}) + "\n"
    if form == "csv":
        return _render_csv(table)
    columns = [
        c for c in table.columns if form in c.forms and any(row.get(c.name) is not None for row in table.rows)
    ]
    cells = [[_show(column, row) for column in columns] for row in table.rows]
    if form == "markdown":
        return _render_markdown(columns, cells, table.notes)
    if form == "latex":
        return _render_latex(columns, cells, table.notes)
    return _render_text(columns, cells, table.notes, width or shutil.get_terminal_size().columns)


def choose_form(**flags: bool) -> str:
    """Return the form that one of the flags asks for, text without any.

    Raises:
        ConfigError: if several ask.
    """
    asked = [name for name, value in flags.items() if value]
    if len(asked) > 1:
        raise ConfigError(f"{' and '.join(f'--{name}' for name in asked)}: choose one form")
    return asked[0] if asked else "text"


def _show(column: Column, row: dict[str, Any]) -> str:
    value = row.get(column.name)
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else column.show(value)


def _render_text(columns: Sequence[Column], cells: list[list[str]], notes: Sequence[str], width: int) -> str:
    """Return aligned columns; those that do not fit follow in further blocks, each with the first column again."""
    sizes = [max([len(column.title), *(len(row[i]) for row in cells)]) for i, column in enumerate(columns)]
    blocks: list[list[int]] = [[]]
    for i in range(1, len(columns)):
        used = sizes[0] + sum(sizes[j] + len(_GAP) for j in blocks[-1])
        if blocks[-1] and used + len(_GAP) + sizes[i] > width:
            blocks.append([])
        blocks[-1].append(i)
    shown = []
    for block in blocks:
        lines = [[column.title for column in columns], *cells]
        shown.append("\n".join(_align(line, [0, *block], columns, sizes) for line in lines))
    # Not at hyphens: options among the notes are to be copied.
    wrapped = [
        textwrap.fill(note, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        for note in notes
    ]
    return "\n".join(["\n\n".join(shown), *([""] if notes else []), *wrapped]) + "\n"


def _align(line: list[str], block: list[int], columns: Sequence[Column], sizes: list[int]) -> str:
    parts = [line[i].ljust(sizes[i]) if columns[i].is_text else line[i].rjust(sizes[i]) for i in block]
    return _GAP.join(parts).rstrip()


def _render_markdown(columns: Sequence[Column], cells: list[list[str]], notes: Sequence[str]) -> str:
    rule = ["---" if column.is_text else "---:" for column in columns]
    lines = [[column.title for column in columns], rule, *cells]
    rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([*rows, *(f"\n{note}" for note in notes)]) + "\n"


def _render_latex(columns: Sequence[Column], cells: list[list[str]], notes: Sequence[str]) -> str:
    kinds = "".join("l" if column.is_text else "r" for column in columns)
    rows = [" & ".join(map(_escape_latex, line)) + r" \\" for line in cells]
    heading = " & ".join(_escape_latex(column.title) for column in columns) + r" \\"
    lines = [
        f"\\begin{{tabular}}{{{kinds}}}",
        r"\hline",
        heading,
        r"\hline",
        *rows,
        r"\hline",
        r"\end{tabular}",
    ]
    return "\n".join([*lines, *(f"\\par {_escape_latex(note)}" for note in notes)]) + "\n"


def _escape_latex(text: str) -> str:
    return re.sub(r"[&%$#_{}\\~^±–]", lambda match: _LATEX.get(match[0], "\\" + match[0]), text)


def _render_csv(table: Table) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    columns = [column for column in table.columns if "csv" in column.forms]
    writer.writerow([column.name for column in columns])
    for row in table.rows:
        writer.writerow(["" if row.get(c.name) is None else row[c.name] for c in columns])
    return file.getvalue()
