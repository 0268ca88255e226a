"""Checks of training rules that make unequal experts pay, each off by default: what fits together."""

from typing import Any

# Not by name: `hmoe.specs.model` imports this.
MoESpec = Any


def check_width_rules(moe: MoESpec) -> None:
    """Raise ConfigError for a rule that these experts, this router or the other fields leave without effect."""
    _check_width_cost(moe)
    if not (moe.load_balance or moe.parameter_penalty or any(moe.losses.values())):
        moe.refuse_unused("while no loss with a coefficient counts loads", "statistics")


def _check_width_cost(moe: MoESpec) -> None:
    """Raise ConfigError for a cost of width where all experts cost the same."""
    if len(set(moe.routed_widths)) == 1:
        moe.refuse_unused("with equally wide experts: it is constant", "width_cost")
