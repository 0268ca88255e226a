"""Figures of what was found inside a model, by question."""

from collections.abc import Iterator
from typing import Any

from hmoe.report.pieces import PagePart


def draw_insides(name: str, tables: dict[str, list[dict[str, Any]]]) -> Iterator[PagePart]:
    yield from ()
