"""What is said when a training ends: where it stands in a few aligned lines, and what can be done next."""

import importlib.util
import math
import shlex
from pathlib import Path

from hmoe.config.counts import estimate_activated_width
from hmoe.config.recipes import list_presets
from hmoe.config.run import RunConfig
from hmoe.runs.summary import RunSummary
from hmoe.units import format_duration, format_flops

_NAME_COLUMNS = 18


def describe_units(config: RunConfig, width: float | None) -> str:
    """Return the hidden units activated, of those that a uniform router would activate; "" for a dense model."""
    if config.model.moe is None or width is None:
        return ""
    return f"{width:,.0f} of {estimate_activated_width(config.model)[1]:,.0f} units"


def describe_run(run: RunSummary, reason: str) -> list[str]:
    """Return the lines that say where a run stands, after why it ended."""
    values = {"tokens": f"{run.tokens:,}", "FLOPs": format_flops(run.flops)}
    best = run.best_validation
    if best is not None:
        newest = run.validation[-1]
        when = "" if newest[0] == run.step else f" at step {newest[0]}"
        values["validation"] = _describe_validation(*newest[1:]) + when
        if best[0] != newest[0]:
            values["best validation"] = f"{_describe_validation(*best[1:])} at step {best[0]}"
    values["training time"] = format_duration(run.seconds)
    if units := describe_units(run.config, run.mean_width):
        values["activated"] = f"{units} of a uniform router, in the mean"
    values["run folder"] = str(run.path)
    return [
        f"{reason}: step {run.step}",
        *(f"{name:{_NAME_COLUMNS}s}{value}" for name, value in values.items()),
    ]


def list_next_steps(run: RunSummary, is_finished: bool) -> list[str]:
    """Return the commands that go on with a run, each of which works as it stands."""
    name, causal = quote_folder(run.path), run.config.model.causal
    if not is_finished:
        return [f"hmoe train {name}"]
    steps = []
    if causal:
        steps.append(f'hmoe generate {name} "She was"')
    if run.validation:  # without one, a text must be named
        steps.append(f"hmoe eval {name}")
    if causal and all(map(importlib.util.find_spec, ("fastapi", "uvicorn"))):
        steps.append(f"hmoe serve {name}")
    return [*steps, f"hmoe train {name} {' '.join(_double_budgets(run))}"]


def quote_folder(folder: Path) -> str:
    """Return a run folder as a shell and every verb reads it."""
    text = str(folder)
    # A preset of this name would be trained instead, and a dash begins a flag.
    return shlex.quote(f"./{text}" if text in list_presets() or text.startswith("-") else text)


def _double_budgets(run: RunSummary) -> list[str]:
    """Return overrides that double each budget that is used up."""
    train = run.config.train
    budgets = (
        ("steps", run.step, train.steps),
        ("tokens", run.tokens, train.tokens),
        ("flops", run.flops, train.flops),
        ("seconds", run.seconds, train.seconds),
    )
    return [
        f"train.{name}={_format_budget(name, 2 * max(used, limit))}"
        for name, used, limit in budgets
        if limit and used >= limit
    ]


def _format_budget(name: str, value: float) -> str:
    return f"{value:.1e}".replace("e+", "e") if name == "flops" else str(math.ceil(value))


def _describe_validation(loss: float, bits_per_byte: float) -> str:
    return f"loss {loss:.4f}, {bits_per_byte:.4f} bits per byte"
