"""Pieces of a page: sections of sentences, figures and tables, and the CSV that each carries."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from hmoe.figures.records import Chart

MOST_ROWS = 200  # of a table in view; all are in its CSV


def show_value(value: Any) -> str:
    """Return a value as people read it: counts with commas, other numbers in four digits."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return str(value)


@dataclass(frozen=True)
class PageColumn:
    """A column of a table on a page.

    Attributes:
        name: of the value in a row, and in the CSV.
        title: its heading.
        show: returns a value as people read it.
        is_text: whether it is aligned to the left.
        is_exact: whether it is in the CSV only.
    """

    name: str
    title: str
    show: Callable[[Any], str] = show_value
    is_text: bool = False
    is_exact: bool = False


@dataclass(frozen=True)
class PageTable:
    """A table with its caption; the first column in view is the heading of its row.

    Attributes:
        name: of its CSV file, without the ending.
        caption: what it shows, in a sentence.
        columns: those shown; one without any value is left out.
        rows: exact values by name, None where there is none.
        num_shown: how many rows are in view.
        is_folded: whether it is behind its caption until a reader opens it.
    """

    name: str
    caption: str
    columns: Sequence[PageColumn]
    rows: Sequence[dict[str, Any]]
    num_shown: int = MOST_ROWS
    is_folded: bool = False

    @property
    def shown_columns(self) -> list[PageColumn]:
        """The columns that have a value in some row."""
        return [
            column
            for column in self.columns
            if not column.is_exact and any(row.get(column.name) is not None for row in self.rows)
        ]

    @property
    def cells(self) -> list[list[str]]:
        """What stands in the rows in view."""
        columns = self.shown_columns
        return [
            ["–" if row.get(column.name) is None else column.show(row[column.name]) for column in columns]
            for row in self.rows[: self.num_shown]
        ]

    @property
    def csv(self) -> str:
        """All rows, exact."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([column.name for column in self.columns])
        for row in self.rows:
            writer.writerow(
                ["" if row.get(column.name) is None else row[column.name] for column in self.columns]
            )
        return file.getvalue()

    @property
    def link(self) -> str:
        """The CSV as an address that needs no network."""
        return "data:text/csv;charset=utf-8," + quote(self.csv, safe=",;:/()!*'-._~@$?=")


def make_table(
    name: str,
    caption: str,
    rows: Sequence[dict[str, Any]],
    num_shown: int = MOST_ROWS,
    is_folded: bool = False,
    titles: Mapping[str, str] | None = None,
) -> PageTable:
    """Return a table of rows as they are, each value under its own name or the title given."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    texts = {key for row in rows for key, value in row.items() if isinstance(value, str)}
    columns = [
        PageColumn(key, (titles or {}).get(key, key.replace("_", " ")), is_text=key in texts) for key in names
    ]
    return PageTable(name, caption, columns, rows, num_shown, is_folded)


@dataclass(frozen=True)
class PageFigure:
    """A picture and its data.

    Attributes:
        chart: what is drawn, with its title and description.
        table: its data; None where a table of the same part has them.
        is_wide: whether it takes the whole line.
    """

    chart: Chart
    table: PageTable | None = None
    is_wide: bool = False


@dataclass(frozen=True)
class ExpertCard:
    """Tokens of one expert, with where they were met.

    Attributes:
        title: which expert.
        width: its hidden units.
        place: from 0, the narrowest, to 1, the widest: the colour.
        text: a sentence on it.
        tokens: (token, what is told of it).
        contexts: (left, token, right) of texts.
    """

    title: str
    width: int
    place: float
    text: str
    tokens: Sequence[tuple[str, str]] = ()
    contexts: Sequence[tuple[str, str, str]] = ()


@dataclass(frozen=True)
class PagePart:
    """A part of a section, under a heading of its own.

    Attributes:
        title: heading; "" for what needs none.
        sentences: in order.
        figures: after the sentences.
        tables: after the figures.
        cards: after the tables.
        quotes: (heading, text) of what a model wrote.
        commands: lines that a shell takes.
    """

    title: str = ""
    sentences: Sequence[str] = ()
    figures: Sequence[PageFigure] = ()
    tables: Sequence[PageTable] = ()
    cards: Sequence[ExpertCard] = ()
    quotes: Sequence[tuple[str, str]] = ()
    commands: Sequence[str] = ()


@dataclass(frozen=True)
class PageSection:
    """A section of the page.

    Attributes:
        name: its anchor.
        title: heading.
        lead: the sentence that says what it answers.
        parts: in order.
        notes: what must be said with it.
    """

    name: str
    title: str
    lead: str = ""
    parts: Sequence[PagePart] = ()
    notes: Sequence[str] = field(default=())
