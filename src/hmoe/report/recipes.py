"""What a reader needs to make the runs again: recipes, their differences, commands, versions, samples, warnings."""

import json
import platform
from collections.abc import Sequence
from typing import Any

from hmoe import __version__
from hmoe.report.inputs import ReportInputs, RunRecord
from hmoe.report.pieces import PageColumn, PagePart, PageSection, PageTable
from hmoe.runs.groups import list_differing_keys, list_recipe_values

_MOST_SAMPLES = 6


def describe_recipes(inputs: ReportInputs, commands: Sequence[str]) -> PageSection:
    """Return the section on how the runs were made, and the commands that make them again."""
    parts = [*_list_differences(inputs), *_list_commands(commands), _list_versions(inputs)]
    return PageSection(
        "recipes",
        "How they were made",
        "What differs, what to type to see it again, and what it ran on.",
        parts,
    )


def _list_differences(inputs: ReportInputs) -> list[PagePart]:
    """Return a table of the keys that differ between recipes, each with its values."""
    if len(inputs.groups) < 2:
        return []
    base = next((group for group in inputs.groups if group.name == inputs.baseline), inputs.groups[0])
    values = {group.name: list_recipe_values(group.runs[0]) for group in inputs.groups}
    dense = [group.name for group in inputs.groups if group.runs[0].config.model.moe is None]
    keys = sorted(
        {key for group in inputs.groups for key in list_differing_keys(base.runs[0], group.runs[0])}
    )
    # A dense recipe has none of the keys of experts, which says nothing of each of them.
    keys = [key for key in keys if not key.startswith("model.moe.") or _differ(values, key, dense)]
    rows = [{"key": key, **{name: _show_key(own.get(key)) for name, own in values.items()}} for key in keys]
    columns = [
        PageColumn("key", "Key", is_text=True),
        *(PageColumn(group.name, group.name, is_text=True) for group in inputs.groups),
    ]
    table = PageTable("recipes", "Keys in which recipes differ.", columns, rows)
    sentences = [f"{', '.join(dense)}: dense, without any key of model.moe."] if dense else []
    return [PagePart("What differs", sentences, tables=[table])]


def _differ(values: dict[str, dict[str, Any]], key: str, dense: Sequence[str]) -> bool:
    own = [recipe.get(key) for name, recipe in values.items() if name not in dense]
    return any(value != own[0] for value in own)


def _show_key(value: Any) -> str:
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value)


def _list_commands(commands: Sequence[str]) -> list[PagePart]:
    sentences = [
        "Each run folder has its whole recipe, seed included, in config.yaml: these lines train it again."
    ]
    return [PagePart("Commands", sentences, commands=commands)] if commands else []


def _list_versions(inputs: ReportInputs) -> PagePart:
    rows = []
    for record in inputs.records:
        environment, precision = record.environment, record.summary.config.train.precision
        names = [
            name for name in ("device", "threads", "cpu", "torch", "triton", "cuda") if name in environment
        ]
        rows.append(
            {"run": record.name, "precision": precision} | {name: environment[name] for name in names}
        )
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [PageColumn(name, name.capitalize(), str, is_text=True) for name in names]
    sentence = f"This page was made by hmoe {__version__} under Python {platform.python_version()}."
    table = PageTable(
        "versions", "On what each run was trained, as its newest checkpoint tells.", columns, rows
    )
    return PagePart("Versions", [sentence], tables=[table])


def describe_samples(inputs: ReportInputs) -> PageSection | None:
    """Return what the models wrote while they were trained; None where nothing was kept."""
    parts = []
    for group in inputs.groups:
        record = inputs.get_records(group.name)[0]
        quotes = _list_samples(record)
        if quotes:
            parts.append(PagePart(record.name, quotes=quotes))
    if not parts:
        return None
    return PageSection(
        "samples", "What they wrote", "Continuations of one prompt, as training went on.", parts
    )


def _list_samples(record: RunRecord) -> list[tuple[str, str]]:
    samples = [(row["step"], row["sample"]) for row in record.rows if isinstance(row.get("sample"), str)]
    samples = [(step, text) for step, text in samples if text]
    if len(samples) > _MOST_SAMPLES:
        last = len(samples) - 1
        samples = [samples[round(place * last / (_MOST_SAMPLES - 1))] for place in range(_MOST_SAMPLES)]
    return [(f"step {step:,}", text) for step, text in samples]


def list_notes(inputs: ReportInputs, further: Sequence[str]) -> PageSection | None:
    """Return what must be said of the runs; None where there is nothing."""
    notes = list(dict.fromkeys([*inputs.comparison.notes, *further]))
    if not notes:
        return None
    return PageSection("notes", "Notes and warnings", notes=notes)
