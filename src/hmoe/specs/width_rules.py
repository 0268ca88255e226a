"""Checks of training rules that make unequal experts pay, each off by default: what fits together."""

from typing import Any

from hmoe.errors import ConfigError

# Not by name: `hmoe.specs.model` imports this.
MoESpec = Any


def check_width_rules(moe: MoESpec) -> None:
    """Raise ConfigError for a rule that these experts, this router or the other fields leave without effect."""
    _check_size_balance(moe)
    _check_width_cost(moe)
    if not moe.parameter_penalty and not moe.width_cost:
        moe.refuse_unused("while parameter_penalty and width_cost are 0", "penalty_start", "penalty_warmup")


def _check_size_balance(moe: MoESpec) -> None:
    """Raise ConfigError for a balance within widths where each width has one expert."""
    if not moe.size_balance:
        return
    widths = moe.expert_widths
    if len(set(widths)) == len(widths):
        raise ConfigError(
            f"moe.size_balance = {moe.size_balance}: all {len(widths)} experts differ in width, so no two can be "
            "balanced within one; nearest is 0"
        )
    if moe.router.constant_load:
        moe.refuse_unused("with experts that choose equally many tokens: it is constant", "size_balance")


def _check_width_cost(moe: MoESpec) -> None:
    """Raise ConfigError for a cost of width where all experts cost the same."""
    if len(set(moe.routed_widths)) == 1:
        moe.refuse_unused("with equally wide experts: it is constant", "width_cost")
