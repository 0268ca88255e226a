"""What is said when a training ends: where it stands, in a few aligned lines."""

from hmoe.config.counts import estimate_activated_width
from hmoe.config.run import RunConfig
from hmoe.runs.summary import RunSummary
from hmoe.runs.validations import Validation
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
        newest = run.validations[-1]
        when = "" if newest.step == run.step else f" at step {newest.step}"
        values["validation"] = _describe_validation(newest) + when
        if best.step != newest.step:
            values["best validation"] = f"{_describe_validation(best)} at step {best.step}"
    if run.seconds is not None:
        values["training time"] = format_duration(run.seconds)
    if units := describe_units(run.config, run.mean_width):
        values["activated"] = f"{units} of a uniform router, in the mean"
    values["run folder"] = str(run.path)
    return [
        f"{reason}: step {run.step}",
        *(f"{name:{_NAME_COLUMNS}s}{value}" for name, value in values.items()),
    ]


def _describe_validation(validation: Validation) -> str:
    return f"loss {validation.loss:.4f}, {validation.bits_per_byte:.4f} bits per byte"
