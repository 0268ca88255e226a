"""What was found inside the models: one section a recipe, of the first of its runs that somebody has looked into."""

import shlex
from collections.abc import Sequence
from typing import Any

from hmoe.report.gallery import list_galleries
from hmoe.report.inputs import ReportInputs, RunRecord
from hmoe.report.inside_figures import draw_insides
from hmoe.report.pieces import PagePart, PageSection

MOST_INSIDES = 2  # each takes seconds to draw
MANY_RECIPES = 8  # beside which only one is drawn


def describe_insides(inputs: ReportInputs) -> tuple[list[PageSection], list[str]]:
    """Return a section for each recipe that was looked into, and what must be said of the others."""
    looked, notes, commands = [], [], []
    for group in inputs.groups:
        records = [record for record in inputs.get_records(group.name) if record.widths]
        seen = [record for record in records if record.inspection is not None]
        if seen:
            looked.append(seen[0])
            if len(seen) > 1:
                notes.append(
                    f"{group.name}: {len(seen)} of its runs were inspected; the page shows {seen[0].name}"
                )
        elif records:
            commands.append(_name_command(records[0]))
    most = 1 if len(inputs.groups) > MANY_RECIPES else MOST_INSIDES
    if len(looked) > most:
        left = ", ".join(record.name for record in looked[most:])
        notes.append(f"the insides of {most} of the runs are shown; name fewer runs to see those of {left}")
    sections = [_describe_inside(record, place, len(looked)) for place, record in enumerate(looked[:most], 1)]
    if commands:
        sections.append(_explain_missing(commands, bool(looked)))
    return sections, notes


def _name_command(record: RunRecord) -> str:
    return shlex.join(["hmoe", "inspect", str(record.summary.path)])


def _explain_missing(commands: Sequence[str], some_are_there: bool) -> PageSection:
    lead = (
        "These recipes were not looked into yet."
        if some_are_there
        else "Nobody has looked inside these models yet."
    )
    sentence = (
        "These commands read the run's held-out text and add, when this page is made again: which tokens each expert "
        "likes, which text is expensive, how alike experts are, and what each is worth."
    )
    return PageSection(
        "look-inside", "To look inside", lead, [PagePart(sentences=[sentence], commands=commands)]
    )


def _describe_inside(record: RunRecord, place: int, count: int) -> PageSection:
    inspection = record.inspection
    assert inspection is not None
    title = f"Inside {record.name}" if count > 1 else "What its experts do"
    parts = [
        *draw_insides(record.name, inspection["tables"], 4 if count == 1 else 2),
        *list_galleries(record),
    ]
    notes = [f"{note[:1].upper()}{note[1:]}." for note in inspection.get("notes", ()) if note]
    return PageSection(f"inside-{place}", title, _describe_text(record, inspection), parts, notes)


def _describe_text(record: RunRecord, inspection: dict[str, Any]) -> str:
    """Return what text the model was looked at with, and at which step where it is not the last one."""
    text, step = inspection["text"], inspection["model"].get("step")
    lead = (
        f"{record.name} read {text.get('tokens', 0):,} tokens of {text.get('documents', 0):,} documents "
        f"({text.get('source', 'unknown source')}). "
        "Where it is known, what routing by chance would give stands beside a number. "
        "Layers are counted from 0."
    )
    if _is_older(inspection["tables"]):
        lead += (
            " An older hmoe made this inspection, without counts that are told today: "
            f"{_name_command(record)} does it anew."
        )
    if step is not None and step != record.summary.step:
        lead += (
            f" It was looked into at step {step:,}, not at its last one, {record.summary.step:,}: "
            f"{_name_command(record)} does that anew."
        )
    return lead


def _is_older(tables: dict[str, Any]) -> bool:
    """Return whether tables lack columns that they have today."""
    return any("pairs" not in row for name in ("top_tokens", "profiles") for row in tables.get(name, ())[:1])
