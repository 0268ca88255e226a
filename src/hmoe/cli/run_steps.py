"""The commands that go on with a run, each of which works as it stands."""

import importlib.util
import math

from hmoe.cli.next_steps import NextStep, make_step, name_path
from hmoe.runs.summary import RunSummary


def list_run_steps(run: RunSummary, is_finished: bool) -> list[NextStep]:
    """Return the commands that can follow a training.

    Args:
        run: as it stands.
        is_finished: whether its budget is used up.
    """
    name, causal = name_path(run.path), run.config.model.causal
    if not is_finished:
        return [make_step("train", name)]
    steps = [make_step("generate", name, "She was")] if causal else []
    if run.validations:  # without a held-out split, a text must be named
        steps.append(make_step("eval", name))
    if all(map(importlib.util.find_spec, ("matplotlib", "scipy", "jinja2"))):
        if run.config.model.moe is not None and run.validations:
            steps.append(make_step("inspect", name))
        steps.append(make_step("report", name, "--out", name_path(run.path / "report.html")))
    if causal and all(map(importlib.util.find_spec, ("fastapi", "uvicorn"))):
        steps.append(make_step("serve", name))
    return [*steps, make_step("train", name, *_double_budgets(run))]


def _double_budgets(run: RunSummary) -> list[str]:
    """Return overrides that double each budget that is used up."""
    train = run.config.train
    budgets = (
        ("steps", run.step, train.steps),
        ("tokens", run.tokens, train.tokens),
        ("flops", run.flops, train.flops),
        ("seconds", run.seconds or 0.0, train.seconds),
    )
    return [
        f"train.{name}={_format_budget(name, 2 * max(used, limit))}"
        for name, used, limit in budgets
        if limit and used >= limit
    ]


def _format_budget(name: str, value: float) -> str:
    return f"{value:.1e}".replace("e+", "e") if name == "flops" else str(math.ceil(value))
