"""Coefficients of penalties on width as functions of the step: none, then growing, then the recipe's (MoHGE)."""

from collections.abc import Mapping
from types import MappingProxyType

from hmoe.specs.model import MoESpec

SCHEDULED = ("parameter_penalty", "width_cost")


def scale_penalties(step: int, moe: MoESpec) -> float:
    """Return what penalties on width are multiplied by in the step after `step` steps, from 0 to 1.

    Routers first learn what experts are good for: MoHGE switches its penalty on in the second half of training.
    """
    grown = step - moe.penalty_start
    if grown < 0:
        return 0.0
    # From 1 / penalty_warmup on, as the learning rate.
    return min(1.0, (grown + 1) / moe.penalty_warmup) if moe.penalty_warmup else 1.0


def schedule_coefficients(
    step: int, moe: MoESpec | None, moved: Mapping[str, float] = MappingProxyType({})
) -> dict[str, float]:
    """Return the coefficients that in this step may differ from the recipe's, by the name of the loss.

    `moved` are those that a controller has in place of the recipe's.
    """
    if moe is None:
        return {}
    full = {name: moved.get(name, moe.get_coefficient(name)) for name in SCHEDULED}
    return {name: scale_penalties(step, moe) * coefficient for name, coefficient in full.items()}
