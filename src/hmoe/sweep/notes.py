"""What is said below the comparison of a sweep: what its seeds can show, how fast it was, which experts it chose."""

import importlib.util
from collections.abc import Sequence

from hmoe.runs.groups import RunGroup
from hmoe.sweep.answer import analyze_group_power, describe_power
from hmoe.sweep.experts import describe_experts
from hmoe.sweep.plan import SweepPlan
from hmoe.sweep.rows import SweepRow
from hmoe.sweep.speed import describe_speeds, measure_speeds


def describe_groups(plan: SweepPlan, rows: Sequence[SweepRow], groups: Sequence[RunGroup]) -> list[str]:
    """Return sentences on the groups of a comparison; those on power need scipy and are left out without it."""
    power = []
    if importlib.util.find_spec("scipy") is not None:
        power = describe_power(analyze_group_power(groups, plan.baseline))
    speeds = describe_speeds(measure_speeds(plan, rows), plan.baseline)
    return [*power, *speeds, *describe_experts(plan, rows)]
