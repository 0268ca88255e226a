"""Which experts the groups of a sweep chose, in words: narrow or wide ones, and how many idle. No torch."""

import statistics
from collections.abc import Iterator, Sequence

from hmoe.runs.expert_shares import list_narrow_experts
from hmoe.statistics.intervals import MeanInterval, compute_mean_interval
from hmoe.sweep.plan import SweepGroup, SweepPlan
from hmoe.sweep.rows import SweepRow

_MANY_IDLE = 0.1  # of the experts, from which on it is told


def describe_experts(plan: SweepPlan, rows: Sequence[SweepRow]) -> list[str]:
    """Return sentences on each group whose experts differ in width, and on each in which experts idle.

    What the paper's figures 3, 5, 6 and 11 show, with intervals over seeds.
    """
    return [
        line for group in plan.groups if not group.is_source for line in _describe_group(plan, group, rows)
    ]


def _describe_group(plan: SweepPlan, group: SweepGroup, rows: Sequence[SweepRow]) -> Iterator[str]:
    ends = {row.run: row for row in rows if row.group == group.name and row.is_finished}
    own = [row for row in ends.values() if row.idle_share_end is not None]
    shares = [
        (row.narrow_share_begin, row.narrow_share_end)
        for row in own
        if row.narrow_share_begin is not None and row.narrow_share_end is not None
    ]
    if shares:
        end = compute_mean_interval([end for _, end in shares])
        change = compute_mean_interval([end - begin for begin, end in shares])
        begin = statistics.fmean(begin for begin, _ in shares)
        uniform = _find_uniform(plan, group)
        yield (
            f"{group.name}: experts narrower than the mean took {_format(end)} of the choices at the end, {begin:.1%} "
            f"in the first tenth of the steps{uniform}; {_judge(change)}"
        )
    idle = [row.idle_share_end for row in own if row.idle_share_end is not None]
    if idle and (mean := statistics.fmean(idle)) >= _MANY_IDLE:
        yield f"{group.name}: {mean:.0%} of its experts idle at the end, with less than a tenth of a uniform share"


def _find_uniform(plan: SweepPlan, group: SweepGroup) -> str:
    """Return what the share would be if all experts were chosen alike; widths that are measured are not known here."""
    moe = None if group.recipe is None else plan.read_recipe(group, plan.seeds[0]).model.moe
    if moe is None or group.measured_widths:
        return ""
    return f", {len(list_narrow_experts(moe)) / len(moe.routed_widths):.1%} if all were chosen alike"


def _format(interval: MeanInterval) -> str:
    if interval.low is None or interval.high is None:
        return f"{interval.mean:.1%}"
    return f"{interval.mean:.1%} ({max(interval.low, 0.0):.1%} to {min(interval.high, 1.0):.1%})"


def _judge(change: MeanInterval) -> str:
    """Return the change over training, in points of a hundred, in words as strong as its interval."""
    points = f"change {100 * change.mean:+.1f} points"
    if change.low is None or change.high is None:
        return f"{points}, {'one run' if change.count == 1 else 'which does not vary'}: no interval"
    if change.low <= 0 <= change.high:
        word = "no change shown"
    else:
        word = "more than at first" if change.low > 0 else "fewer than at first"
    return f"{points} ({100 * change.low:+.1f} to {100 * change.high:+.1f}), {word}"
