"""What training took in seconds: runs that a sweep trained side by side, in pairs (figure 1, table 2). No torch."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from hmoe.statistics.leverage import ComputeCost
from hmoe.sweep.plan import SweepPlan
from hmoe.sweep.rows import SweepRow

_FEWEST_PAIRS = 4  # for a median with an error
_NORMAL_95 = 1.96  # standard errors of a 95% interval


@dataclass(frozen=True)
class GroupSpeed:
    """How fast a group was trained, beside the baseline, and how large it was: the paper's table 2.

    Attributes:
        group: its name.
        activated_parameters: of a token, mean over the training and the seeds.
        experts_flops_share: share of the training FLOPs that routed experts spent, mean over the seeds.
        seconds: of a run, median over the seeds.
        num_pairs: runs beside one of the baseline of the same seed, by the same commit on the same machine.
        speed, speed_low, speed_high: tokens per second by the baseline's, median of the pairs, with a 95% interval;
            None with fewer than four pairs, and for the baseline.
    """

    group: str
    activated_parameters: float
    experts_flops_share: float
    seconds: float | None
    num_pairs: int
    speed: float | None = None
    speed_low: float | None = None
    speed_high: float | None = None


def compare_seconds(
    rows: Iterable[SweepRow],
    reference: str,
    by: Literal["family", "group"] = "family",
    per: Literal["flops", "tokens"] = "flops",
) -> dict[str, ComputeCost]:
    """Return the seconds of a FLOP, or of a token, by those of a reference, from the runs themselves.

    The median over pairs of runs of one size and one seed, on one machine by one commit, which a sweep trains one
    after the other: a machine that is slower for hours is so for both, and one run that was held up moves no median.
    Seconds hold saving and validation. The error is that of a median of normal logarithms, whose deviation is 1.48 of
    the median deviation.

    Args:
        rows: of the table.
        reference: family or group that the others are compared with.
        by: what is compared.
        per: of what the seconds are.

    Returns:
        By name; those with fewer than four pairs are left out.
    """
    costs = {}
    for name, logs in _pair_seconds(rows, reference, by, per).items():
        if len(logs) >= _FEWEST_PAIRS:
            middle = statistics.median(logs)
            deviation = 1.4826 * statistics.median(abs(log - middle) for log in logs)
            error = math.sqrt(math.pi / 2 / len(logs)) * deviation
            costs[name] = ComputeCost(math.exp(middle), error)
    return costs


def _pair_seconds(rows: Iterable[SweepRow], reference: str, by: str, per: str) -> dict[str, list[float]]:
    """Return by name the logarithms of how many times the seconds of the reference each run took."""
    # Of the rows of a run the last one stays, that of its largest budget.
    ends = {(getattr(row, by), row.size, row.seed): row for row in rows if row.is_finished}
    logs: dict[str, list[float]] = {}
    for (name, size, seed), row in ends.items():
        other = ends.get((reference, size, seed))
        if other is None or (row.machine, row.commit) != (other.machine, other.commit):
            continue
        if row.seconds and other.seconds:
            ratio = row.seconds / getattr(row, per) / (other.seconds / getattr(other, per))
            logs.setdefault(name, []).append(math.log(ratio))
    return logs


def measure_speeds(plan: SweepPlan, rows: Sequence[SweepRow]) -> list[GroupSpeed]:
    """Return the speed of each group of a sweep that has a finished run, in the order of the plan."""
    baseline = plan.baseline or ""
    costs = compare_seconds(rows, baseline, "group", "tokens")
    pairs = _pair_seconds(rows, baseline, "group", "tokens")
    speeds = []
    for group in plan.groups:
        own = [row for row in rows if row.group == group.name and row.is_finished]
        if not own or group.is_source:
            continue
        seconds = [row.seconds for row in own if row.seconds]
        cost = costs.get(group.name) if group.name != baseline else None
        ends = [None, None, None] if cost is None else _invert(cost)
        speeds.append(
            GroupSpeed(
                group.name,
                statistics.fmean(row.activated_parameters or 0.0 for row in own),
                statistics.fmean(row.expert_flops_share or 0.0 for row in own),
                statistics.median(seconds) if seconds else None,
                len(pairs.get(group.name, ())),
                *ends,
            )
        )
    return speeds


def _invert(cost: ComputeCost) -> list[float | None]:
    """Return a speed and the ends of its interval, from a cost and its error."""
    reach = math.exp(_NORMAL_95 * (cost.relative_error or 0.0))
    speed = 1 / cost.seconds_per_flop
    return [speed, speed / reach, speed * reach]


def describe_speeds(speeds: Sequence[GroupSpeed], baseline: str | None) -> list[str]:
    """Return a sentence for each group whose speed has an interval, as strong as that."""
    sentences = []
    for speed in speeds:
        if speed.speed is None or speed.speed_low is None or speed.speed_high is None:
            continue
        word = (
            "faster" if speed.speed_low > 1 else "slower" if speed.speed_high < 1 else "no difference shown"
        )
        sentences.append(
            f"{speed.group}: {speed.speed:.3f} ({speed.speed_low:.3f} to {speed.speed_high:.3f}) times the tokens per "
            f"second of {baseline}, {word}"
        )
    return sentences
