"""What is said when a training ends: where it stands in a few aligned lines, and what can be done next."""

import importlib.util
import math
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hmoe.config.counts import estimate_activated_width
from hmoe.config.recipes import list_presets
from hmoe.config.run import RunConfig
from hmoe.train.best_validation import BestValidation, Validation, get_number
from hmoe.units import format_duration, format_flops

_NAME_COLUMNS = 18
_Lines = list[str]


class MeanWidth:
    """The mean of the hidden units that the steps of a run activated, of the rows of its metrics.jsonl."""

    def __init__(self) -> None:
        self._sum, self._num_rows = 0.0, 0

    def update(self, row: dict[str, Any]) -> None:
        """Take in a row; that of a step that was skipped says nothing of routers."""
        width = get_number(row, "mean_activated_width")
        if width is not None and get_number(row, "loss") is not None:
            self._sum, self._num_rows = self._sum + width, self._num_rows + 1

    def get(self) -> float | None:
        """Return the mean, None without any row."""
        return self._sum / self._num_rows if self._num_rows else None


def describe_units(config: RunConfig, width: float | None) -> str:
    """Return the hidden units activated, of those that a uniform router would activate; "" for a dense model."""
    if config.model.moe is None or width is None:
        return ""
    return f"{width:,.0f} of {estimate_activated_width(config.model)[1]:,.0f} units"


def summarize_run(
    reason: str, config: RunConfig, counts: Any, rows: Iterable[dict[str, Any]], seconds: float, folder: Path
) -> tuple[_Lines, bool]:
    """Return the lines that say where a run stands, and whether it has a validation split.

    Args:
        reason: why it ended.
        config: of the run.
        counts: steps, tokens and FLOPs (`hmoe.train.session.RunCounts`).
        rows: of metrics.jsonl.
        seconds: training time.
        folder: the run folder.
    """
    validations, mean = BestValidation(), MeanWidth()
    for row in rows:
        validations.update(row)
        mean.update(row)
    values = {"tokens": f"{counts.tokens:,}", "FLOPs": format_flops(counts.flops)}
    newest, best = validations.newest, validations.best
    if newest is not None and best is not None:
        when = "" if newest.step == counts.step else f" at step {newest.step}"
        values["validation"] = _describe_validation(newest) + when
        if best.step != newest.step:
            values["best validation"] = f"{_describe_validation(best)} at step {best.step}"
    values["training time"] = format_duration(seconds)
    if units := describe_units(config, mean.get()):
        values["activated"] = f"{units} of a uniform router, in the mean"
    values["run folder"] = str(folder)
    lines = [f"{name:{_NAME_COLUMNS}s}{value}" for name, value in values.items()]
    return [f"{reason}: step {counts.step}", *lines], newest is not None


def list_next_steps(
    folder: Path, config: RunConfig, counts: Any, seconds: float, is_finished: bool, has_validation: bool
) -> _Lines:
    """Return the commands that go on with a run, each of which works as it stands."""
    name = quote_folder(folder)
    if not is_finished:
        return [f"hmoe train {name}"]
    steps = []
    if config.model.causal:
        steps.append(f'hmoe generate {name} "She was"')
    if has_validation:  # without one, a text must be named
        steps.append(f"hmoe eval {name}")
    if config.model.causal and all(map(importlib.util.find_spec, ("fastapi", "uvicorn"))):
        steps.append(f"hmoe serve {name}")
    return [*steps, f"hmoe train {name} {' '.join(_double_budgets(config, counts, seconds))}"]


def quote_folder(folder: Path) -> str:
    """Return a run folder as a shell and every verb reads it."""
    text = str(folder)
    # A preset of this name would be trained instead, and a dash begins a flag.
    return shlex.quote(f"./{text}" if text in list_presets() or text.startswith("-") else text)


def _double_budgets(config: RunConfig, counts: Any, seconds: float) -> list[str]:
    """Return overrides that double each budget that is used up."""
    train = config.train
    budgets = (
        ("steps", counts.step, train.steps),
        ("tokens", counts.tokens, train.tokens),
        ("flops", counts.flops, train.flops),
        ("seconds", seconds, train.seconds),
    )
    return [
        f"train.{name}={_format_budget(name, 2 * max(used, limit))}"
        for name, used, limit in budgets
        if limit and used >= limit
    ]


def _format_budget(name: str, value: float) -> str:
    return f"{value:.1e}".replace("e+", "e") if name == "flops" else str(math.ceil(value))


def _describe_validation(validation: Validation) -> str:
    return f"loss {validation.loss:.4f}, {validation.bits_per_byte:.4f} bits per byte"
