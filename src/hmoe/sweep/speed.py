"""What training took in seconds: runs that a sweep trained side by side, in pairs (figure 1, table 2). No torch."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from hmoe.statistics.intervals import compute_trimmed_interval
from hmoe.statistics.leverage import ComputeCost
from hmoe.sweep.plan import SweepPlan
from hmoe.sweep.rows import SweepRow

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class GroupSpeed:
    """How fast a group was trained, beside the baseline, and how large it was: the paper's table 2.

    Attributes:
        group: its name.
        activated_parameters: of a token, mean over the training and the seeds.
        expert_flops_share: share of the training FLOPs that routed experts spent, mean over the seeds.
        seconds: of a run, median over the seeds.
        num_pairs: runs beside one of the baseline of the same seed, by the same commit on the same machine.
        speed, speed_low, speed_high: tokens per second by the baseline's, trimmed mean of the pairs, with an interval;
            None with too few pairs for one, and for the baseline. Intervals of all groups hold together with about 95%.
    """

    group: str
    activated_parameters: float
    expert_flops_share: float
    seconds: float | None
    num_pairs: int
    speed: float | None = None
    speed_low: float | None = None
    speed_high: float | None = None


def compare_seconds(rows: Iterable[SweepRow], reference: str) -> dict[str, ComputeCost]:
    """Return the seconds of a FLOP of each family by those of a reference, from the runs themselves.

    The trimmed mean, in logarithms, over pairs of runs of one size and one seed, on one machine by one commit, which a
    sweep trains one after the other: a machine that is slower for hours is so for both, and a run that was held up is
    trimmed. Seconds hold saving and validation. The error is the half width of the interval, as of a normal one.

    Returns:
        By name; families with too few pairs for an interval, or that were held up too often, are left out.
    """
    costs = {}
    for name, logs in _pair_seconds(rows, reference, "family", "flops").items():
        interval = compute_trimmed_interval(logs, _CONFIDENCE)
        if name == reference:
            costs[name] = ComputeCost(1.0, 0.0)
        elif interval.half_width is not None:
            error = interval.half_width / NormalDist().inv_cdf(0.5 + _CONFIDENCE / 2)
            if error < 1:
                costs[name] = ComputeCost(math.exp(interval.mean), error)
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


def measure_speeds(
    plan: SweepPlan, rows: Sequence[SweepRow], baseline: str | None = None
) -> list[GroupSpeed]:
    """Return the speed of each group of a sweep that has a finished run, in the order of the plan.

    Args:
        plan: of the sweep.
        rows: of its table.
        baseline: group beside which the others are; None: the plan's.
    """
    baseline = baseline or plan.baseline or ""
    pairs = _pair_seconds(rows, baseline, "group", "tokens")
    others = [
        group.name
        for group in plan.groups
        if group.name in pairs and group.name != baseline and not group.is_source
    ]
    confidence = 1 - (1 - _CONFIDENCE) / max(len(others), 1)  # Bonferroni
    speeds = []
    for group in plan.groups:
        own = [row for row in rows if row.group == group.name and row.is_finished]
        if not own or group.is_source:
            continue
        seconds = [row.seconds for row in own if row.seconds]
        logs = pairs.get(group.name, [])
        interval = compute_trimmed_interval(logs, confidence) if group.name in others else None
        # Tokens per second, not seconds per token: what is slowest is the low end.
        ends = (
            () if interval is None or interval.low is None else (interval.mean, interval.high, interval.low)
        )
        speeds.append(
            GroupSpeed(
                group.name,
                statistics.fmean(row.activated_parameters or 0.0 for row in own),
                statistics.fmean(row.expert_flops_share or 0.0 for row in own),
                statistics.median(seconds) if seconds else None,
                len(logs),
                *(math.exp(-end) for end in ends if end is not None),
            )
        )
    return speeds


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
            f"{speed.group}: {speed.speed:.4f} ({speed.speed_low:.4f} to {speed.speed_high:.4f}) times the tokens per "
            f"second of {baseline}, {word}"
        )
    return sentences
