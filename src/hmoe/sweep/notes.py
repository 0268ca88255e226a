"""What is said below the comparison of a sweep: what its seeds can show, how fast it was, which experts it chose."""

import importlib.util
from collections.abc import Sequence

from hmoe.runs.groups import RunGroup
from hmoe.sweep.answer import analyze_group_power, describe_power
from hmoe.sweep.experts import describe_experts
from hmoe.sweep.outcome import describe_controls
from hmoe.sweep.plan import SweepPlan
from hmoe.sweep.rows import SweepRow
from hmoe.sweep.speed import describe_speeds, measure_speeds


def describe_groups(
    plan: SweepPlan, rows: Sequence[SweepRow], groups: Sequence[RunGroup], baseline: str | None
) -> list[str]:
    """Return sentences on the groups of a comparison; those on power need scipy and are left out without it.

    Args:
        plan: of the sweep.
        rows: of its table.
        groups: that are compared.
        baseline: one of them, with which the others are compared, or None.
    """
    sentences = describe_controls(plan, groups, baseline)
    if importlib.util.find_spec("scipy") is not None:
        sentences += describe_power(analyze_group_power(groups, baseline))
    if baseline is not None:
        sentences += describe_speeds(measure_speeds(plan, rows, baseline), baseline)
    return [*sentences, *describe_experts(plan, rows)]
