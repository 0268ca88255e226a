"""Checks of training rules that make unequal experts pay, each off by default: what fits together."""

from typing import Any

from hmoe.errors import ConfigError

# Not by name: `hmoe.specs.model` imports this.
MoESpec = Any


def check_width_rules(moe: MoESpec) -> None:
    """Raise ConfigError for a rule that these experts, this router or the other fields leave without effect."""
    _check_width_cost(moe)
    _check_target_width(moe)
    if not (moe.load_balance or moe.parameter_penalty or any(moe.losses.values())):
        moe.refuse_unused("while no loss with a coefficient counts loads", "statistics")


def _check_width_cost(moe: MoESpec) -> None:
    """Raise ConfigError for a cost of width where all experts cost the same."""
    if len(set(moe.routed_widths)) == 1:
        moe.refuse_unused("with equally wide experts: it is constant", "width_cost")


def _check_target_width(moe: MoESpec) -> None:
    """Raise ConfigError for a target that no routing gives, or that nothing moves the width towards."""
    target = moe.target_width
    if target is None:
        return
    if not moe.parameter_penalty and not moe.width_cost:
        raise ConfigError(
            f"moe.target_width = {target:g}: is held by moving width_cost, or else parameter_penalty, and both are 0; "
            "nearest is width_cost = 0.1"
        )
    if moe.router.takes_agreed_tokens:
        moe.refuse_unused("with experts that choose their tokens: the width is fixed", "target_width")
    widths = sorted(moe.routed_widths)
    fewest, _, most = moe.router.count_experts_per_token(len(widths))
    least, largest = sum(widths[:fewest]), sum(widths[-most:])
    if least == largest:
        moe.refuse_unused(f"where every token activates {least} hidden units", "target_width")
    if not least <= target <= largest:
        raise ConfigError(
            f"moe.target_width = {target:g}: the router can activate {least} to {largest} hidden units; "
            f"nearest is {min(max(target, least), largest):g}"
        )
