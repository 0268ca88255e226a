"""The uniform control of a finished run: equal experts that activate as many hidden units as it did. No torch."""

from dataclasses import replace
from pathlib import Path

from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError
from hmoe.runs.summary import RunSummary, read_run_summary
from hmoe.specs.model import MoESpec, list_unequal_only
from hmoe.specs.widths import WidthRule
from hmoe.units import format_flops

CONTROL_LOAD_BALANCE = 1e-2  # what the paper gives equal experts in place of the parameter penalty


def make_uniform_control(run: Path) -> tuple[RunConfig, RunSummary]:
    """Return the recipe of the uniform control of a run folder, and what the run was measured to do."""
    summary = read_run_summary(run)
    return derive_control(summary), summary


def derive_control(summary: RunSummary) -> RunConfig:
    """Return the recipe of a run's uniform control.

    All experts are as wide as makes the expected activated width, at the run's own number of experts per token, that of
    the run's whole training. Where a router takes a fixed number of experts, a token of the control costs what one of
    the run cost; a top-p router may take more or fewer of the equal ones, so the control's budget is in FLOPs and ends
    it where the run ended. The parameter penalty, which on equal experts only balances them, and losses that are for
    unequal experts only become the load-balancing loss with the paper's coefficient for equal experts, unless the run
    has one of its own.

    Raises:
        ConfigError: if the run is dense, its experts are equal already, or it has taken no step.
    """
    run, moe = summary.path, summary.config.model.moe
    if moe is None:
        raise ConfigError(f"{run}: a dense model has no uniform control")
    if summary.mean_width is None or summary.experts_per_token is None:
        raise ConfigError(f"{run}: has taken no training step yet, so nobody knows what its experts activate")
    if len(set(moe.expert_widths)) == 1:
        raise ConfigError(f"{run}: its experts are equal already, all {moe.expert_widths[0]} units wide")
    width = find_control_width(moe, summary.mean_width, summary.experts_per_token)
    experts, dropped = len(moe.expert_widths), list_unequal_only(moe)
    control = replace(
        moe,
        widths=WidthRule(shape="equal", total=width * experts, experts=experts),
        parameter_penalty=0.0,
        penalty_norm="mean",
        load_balance=moe.load_balance or (CONTROL_LOAD_BALANCE if moe.parameter_penalty or dropped else 0.0),
        losses={name: value for name, value in moe.losses.items() if name not in dropped},
        skip=(),
    )
    config = summary.config
    budget = {"steps": None, "tokens": None, "seconds": None, "flops": choose_control_flops(summary)}
    changes = {
        "model": replace(config.model, moe=control),
        "train": config.train.model_copy(update=budget),
    }
    return config.model_copy(update=changes)


def choose_control_flops(summary: RunSummary) -> float:
    """Return the FLOPs that end the control where the run ended, to half a step."""
    limit = summary.config.train.flops
    if limit is not None and summary.flops >= limit:
        return limit  # both end with the step that reaches it
    return float(round(summary.flops * (1 - 0.5 / summary.step)))


def find_control_width(moe: MoESpec, mean_width: float, experts_per_token: float) -> int:
    """Return the width of equal experts that activate `mean_width` units when a token takes so many of all experts.

    Of experts without hidden units a token takes its share, as of the others.
    """
    share = len(moe.expert_widths) / len(moe.routed_widths)
    return max(1, round(mean_width / (experts_per_token * share)))


def explain_control(summary: RunSummary, control: RunConfig) -> list[str]:
    """Return the lines that say what the control is of."""
    moe = control.model.moe
    assert moe is not None
    assert summary.mean_width is not None
    assert summary.experts_per_token is not None
    changed = list_control_changes(summary.config, control)
    return [
        f"Uniform control of {summary.path}, which activated {summary.mean_width:.2f} hidden units",
        f"per token and MoE layer (mean of its {summary.step:,} steps; {summary.uniform_width:.0f} under uniform "
        f"routing) in {summary.experts_per_token:.2f} experts:",
        f"{len(moe.expert_widths)} equal experts of {moe.expert_widths[0]} hidden units.",
        f"It ends where the run ended, at {format_flops(summary.flops)} FLOPs, to a step.",
        *(f"Instead of {old} it has {new}." for old, new in changed),
        *(
            [f"The run is not finished: {summary.progress:.0%} of its budget."]
            if summary.progress < 1
            else []
        ),
    ]


def list_control_changes(config: RunConfig, control: RunConfig) -> list[tuple[str, str]]:
    """Return the auxiliary losses that the control has in place of the run's, as (old, new)."""
    old, new = config.model.moe, control.model.moe
    assert old is not None
    assert new is not None
    names = ("parameter_penalty", "penalty_norm", "load_balance", "losses", "skip")
    return [
        (f"{name} {getattr(old, name)}", f"{name} {getattr(new, name)}")
        for name in names
        if getattr(old, name) != getattr(new, name)
    ]
