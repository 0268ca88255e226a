"""Several recipes side by side: equal FLOPs checked, seeds paired, and no verdict that an interval does not carry."""

import difflib
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmoe.config.counts import count_parameters
from hmoe.errors import ConfigError
from hmoe.runs.benchmark_scores import read_benchmark_scores
from hmoe.runs.groups import RunGroup
from hmoe.statistics.intervals import MeanInterval, compute_mean_interval, estimate_detectable_difference
from hmoe.statistics.paired import PairedDifference, compare_paired

LARGEST_FLOPS_DIFFERENCE = 0.02  # relative, between recipes that are compared at equal FLOPs


@dataclass(frozen=True)
class Comparison:
    """Rows of a table, one for each recipe, and what must be said with them.

    Attributes:
        rows: exact values by name; None where there is none.
        notes: sentences about the rows, and what is amiss with folders.
    """

    rows: list[dict[str, Any]]
    notes: list[str]


def compare_groups(groups: Sequence[RunGroup], baseline: str | None = None) -> Comparison:
    """Compare recipes, by pairs of equal seeds with one of them as the baseline, if it is named.

    Raises:
        ConfigError: if no group has the baseline's name.
    """
    rows = [_describe_group(group) for group in groups]
    outliers = find_flops_outliers([row["flops"] for row in rows])
    for row, is_outlier in zip(rows, outliers, strict=True):
        row["flops_differ"] = is_outlier
    notes = list(dict.fromkeys(_list_notes(groups, rows)))
    if baseline is not None:
        by_name = {group.name: group for group in groups}
        notes += _add_differences(rows, by_name, _find_baseline(by_name, baseline))
    return Comparison(rows, notes)


def _find_baseline(groups: dict[str, RunGroup], baseline: str) -> str:
    """Return the name of a group, which may also be told by one of its folders."""
    if baseline in groups:
        return baseline
    folder = Path(baseline).absolute()
    for name, group in groups.items():
        if any(run.path.absolute() == folder for run in group.runs):
            return name
    nearest = difflib.get_close_matches(baseline, groups, 1, 0)[0]
    raise ConfigError(
        f"baseline = {baseline}: must be a row of the table ({', '.join(groups)}); nearest is {nearest}",
        argument="baseline",
    )


def find_flops_outliers(flops: Sequence[float]) -> list[bool]:
    """Return which spent more or less than 2% apart from the rest.

    The rest are the most that agree with each other; where nobody agrees, or two camps are as large, all differ.
    """
    agreeing = [[_differs_little(value, other) for other in flops] for value in flops]
    camps = {tuple(row) for row in agreeing if sum(row) == max(map(sum, agreeing))}
    if len(camps) == 1:
        return [not agrees for agrees in camps.pop()]
    return [True] * len(flops)


def _differs_little(value: float, other: float) -> bool:
    return abs(value - other) <= LARGEST_FLOPS_DIFFERENCE * min(value, other)


def _describe_group(group: RunGroup) -> dict[str, Any]:
    runs = group.runs
    bits = [run.bits_per_byte for run in runs if run.bits_per_byte is not None]
    interval = compute_mean_interval(bits) if bits else MeanInterval(0.0, None, 0, None)
    return {
        "name": group.name,
        "seeds": list(group.seeds),
        "runs": [str(run.path) for run in runs],
        "steps": _mean(run.step for run in runs),
        "tokens": _mean(run.tokens for run in runs),
        "flops": _mean(run.flops for run in runs),
        "bits_per_byte": interval.mean if bits else None,
        "bits_per_byte_half_width": interval.half_width,
        "bits_per_byte_by_seed": [run.bits_per_byte for run in runs],
        "nats_per_token": _mean(run.nats_per_token for run in runs),
        "mean_activated_width": _mean(run.mean_width for run in runs),
        "uniform_width": runs[0].uniform_width,
        "activated_parameters": _mean(run.activated_parameters for run in runs),
        "total_parameters": sum(count_parameters(runs[0].config.model).values()),
        "seconds": _mean(run.seconds for run in runs),
        "benchmarks": read_benchmark_scores(runs),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that there are; a whole number where all are the same one."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return known[0] if min(known) == max(known) else statistics.fmean(known)


def _list_notes(groups: Sequence[RunGroup], rows: Sequence[dict[str, Any]]) -> Iterable[str]:
    for group, row in zip(groups, rows, strict=True):
        for run in group.runs:
            yield from run.warnings
            if run.progress < 1:
                yield f"{run.path}: is not finished"
            if run.bits_per_byte is None:
                yield f"{run.path}: has no validation at its last step"
        spent = [run.flops for run in group.runs]
        if not _differs_little(min(spent), max(spent)):
            yield f"{group.name}: its seeds' FLOPs differ by {max(spent) / min(spent) - 1:.1%}"
        if row["flops_differ"]:
            yield f"{group.name}: its FLOPs differ by more than {LARGEST_FLOPS_DIFFERENCE:.0%} from the rest, marked *"
    if any(len(group.runs) == 1 for group in groups) and any(
        row["bits_per_byte"] is not None for row in rows
    ):
        yield "a single seed has no interval: nobody can say what of a difference is chance"


def explain_incomparable(group: RunGroup, other: RunGroup) -> str | None:
    """Return why the validations of two recipes do not belong together, None if they do."""
    first, second = group.runs[0], other.runs[0]
    if first.data != second.data:
        return "other data"
    for key in ("data.sequence_length", "train.eval_sequences"):
        section, _, name = key.partition(".")
        values = [getattr(getattr(run.config, section), name) for run in (first, second)]
        if values[0] != values[1]:
            return f"other {key}"
    return None


def _add_differences(rows: list[dict[str, Any]], groups: dict[str, RunGroup], baseline: str) -> list[str]:
    """Add the differences to the baseline to the rows; return what must be said of them."""
    spent = {row["name"]: row["flops"] for row in rows}
    refusals: dict[str, str] = {}
    differences: dict[str, list[float]] = {}
    for name, group in groups.items():
        if name == baseline:
            continue
        refusal = explain_incomparable(group, groups[baseline])
        if refusal is None and not _differs_little(spent[name], spent[baseline]):
            refusal = f"not at equal FLOPs ({spent[name] / spent[baseline]:.2f} times)"
        pairs = pair_by_seed(group, groups[baseline])
        if refusal is None and not pairs:
            refusal = "no seed in common"
        if pairs:
            differences[name] = pairs
        if refusal is not None:
            refusals[name] = refusal
    tested = compare_paired({name: values for name, values in differences.items() if name not in refusals})
    for row in rows:
        name = row["name"]
        if name in tested:
            row.update(_describe_difference(tested[name], differences[name]))
        elif name != baseline:
            pairs = differences.get(name, [])
            row.update({"pairs": len(pairs), "difference": _mean(pairs), "verdict": refusals[name]})
    return _explain_differences(len(tested), baseline, groups)


def pair_by_seed(group: RunGroup, baseline: RunGroup) -> list[float]:
    """Return the differences in bits per byte to the baseline, one for each seed that both have validated."""
    bits = {run.config.seed: run.bits_per_byte for run in baseline.runs}
    pairs = [(run.bits_per_byte, bits.get(run.config.seed)) for run in group.runs]
    return [value - other for value, other in pairs if value is not None and other is not None]


def _describe_difference(result: PairedDifference, pairs: Sequence[float]) -> dict[str, Any]:
    interval = result.interval
    return {
        "pairs": interval.count,
        "difference": interval.mean,
        "difference_low": interval.low,
        "difference_high": interval.high,
        "confidence": result.confidence,
        "adjusted_p": result.adjusted_tail,
        "sign_flip_p": result.sign_flip,
        "detectable_difference": estimate_detectable_difference(pairs),
        "verdict": _say_verdict(result),
    }


def _say_verdict(result: PairedDifference) -> str:
    interval = result.interval
    if interval.low is None or interval.high is None or interval.half_width is None:
        return "one pair of seeds: no interval"
    if result.excludes_zero:
        side = "ahead" if interval.mean < 0 else "behind"
        return f"{side} by {abs(interval.mean):.4f} ± {interval.half_width:.4f}"
    if interval.half_width == 0:
        return "equal"
    return f"no difference shown; up to {max(-interval.low, interval.high):.4f} is not excluded"


def _explain_differences(count: int, baseline: str, groups: dict[str, RunGroup]) -> list[str]:
    notes = [
        f"differences to {baseline} in bits per byte, seed by seed; below zero is ahead; "
        f"intervals hold together at 95% (Student's t, Holm's correction over {count} comparison{'s' * (count != 1)})"
    ]
    own = set(groups[baseline].seeds)
    for name, group in groups.items():
        alone = sorted(own ^ set(group.seeds))
        if alone and name != baseline:
            notes.append(
                f"{name}: seeds without a partner are left out of its difference: {', '.join(map(str, alone))}"
            )
    return notes
