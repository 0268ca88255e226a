"""Several recipes side by side: equal FLOPs checked, seeds paired, and no verdict that an interval does not carry."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmoe.errors import ConfigError
from hmoe.runs.benchmark_scores import read_benchmark_scores
from hmoe.runs.groups import BUDGETS, RunGroup, list_differing_keys
from hmoe.runs.placement_log import describe_placement_log
from hmoe.runs.summary import RunSummary, average_known
from hmoe.statistics.intervals import MeanInterval, compute_mean_interval, estimate_detectable_difference
from hmoe.statistics.paired import PairedDifference, compare_paired

LARGEST_FLOPS_RATIO = 1.02  # between recipes that are compared at equal FLOPs


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

    Args:
        groups: of different names.
        baseline: name of one of them, or a folder under which it was named.

    Raises:
        ConfigError: if the baseline is none of them.
    """
    scores, lost = read_benchmark_scores([group.runs for group in groups])
    rows = [_describe_group(group, own) for group, own in zip(groups, scores, strict=True)]
    outliers = find_flops_outliers([row["flops"] for row in rows])
    for row, is_outlier in zip(rows, outliers, strict=True):
        row["flops_differ"] = is_outlier
    notes = [*dict.fromkeys(_list_notes(groups, rows)), *lost]
    if baseline is not None:
        by_name = {group.name: group for group in groups}
        notes += _add_differences(rows, by_name, _find_baseline(by_name, baseline))
    return Comparison(rows, notes)


def _find_baseline(groups: Mapping[str, RunGroup], baseline: str) -> str:
    """Return the name of a group, which may also be told by its folder or by one of its runs."""
    if baseline in groups:
        return baseline
    folder = Path(baseline).absolute()
    for name, group in groups.items():
        if folder in {
            path.absolute() for path in (*map(Path, group.words), *(run.path for run in group.runs))
        }:
            return name
    nearest = difflib.get_close_matches(baseline, groups, 1, 0)[0]
    raise ConfigError(
        f"baseline = {baseline}: must be a row of the table ({', '.join(groups)}); nearest is {nearest}",
        argument="baseline",
    )


def find_flops_outliers(flops: Sequence[float]) -> list[bool]:
    """Return which spent over 2% more or less than the rest.

    The rest are the largest number of values within 2% of each other; where two such sets are as large, or no two
    values agree, all differ.
    """
    camps = [
        {i for i, value in enumerate(flops) if least <= value <= LARGEST_FLOPS_RATIO * least}
        for least in flops
    ]
    size = max(map(len, camps))
    largest = {frozenset(camp) for camp in camps if len(camp) == size}
    rest = largest.pop() if len(largest) == 1 else frozenset()
    return [i not in rest for i in range(len(flops))]


def _are_equal_flops(values: Sequence[float]) -> bool:
    return max(values) <= LARGEST_FLOPS_RATIO * min(values)


def _describe_group(group: RunGroup, scores: dict[str, float]) -> dict[str, Any]:
    runs = group.runs
    validations = [run.last_validation for run in runs]
    bits = [validation.bits_per_byte for validation in validations if validation]
    interval = compute_mean_interval(bits) if bits else MeanInterval(0.0, None, 0, None)
    return {
        "name": group.name,
        "seeds": list(group.seeds),
        "num_seeds": len(runs),
        "num_validated": len(bits),
        "runs": [str(run.path) for run in runs],
        "steps": average_known(run.step for run in runs),
        "tokens": average_known(run.tokens for run in runs),
        "flops": average_known(run.flops for run in runs),
        "bits_per_byte": interval.mean if bits else None,
        "bits_per_byte_half_width": interval.half_width,
        "bits_per_byte_by_seed": [
            validation.bits_per_byte if validation else None for validation in validations
        ],
        "nats_per_token": average_known(validation.loss for validation in validations if validation),
        "mean_activated_width": average_known(run.mean_width for run in runs),
        "uniform_width": runs[0].uniform_width,
        "activated_parameters": average_known(run.activated_parameters for run in runs),
        "total_parameters": runs[0].total_parameters,
        "seconds": average_known(run.seconds for run in runs),
        "benchmarks": scores,
    }


def _list_notes(groups: Sequence[RunGroup], rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    usual = _find_usual_group(groups)
    for group, row in zip(groups, rows, strict=True):
        yield from _list_run_notes(group)
        if row["flops_differ"]:
            yield f"{group.name}: its FLOPs differ by more than {LARGEST_FLOPS_RATIO - 1:.0%} from the rest, marked *"
        reason = explain_incomparable(group.runs[0], usual.runs[0])
        if reason is not None:
            yield f"{group.name}: its bits per byte cannot be compared with those of {usual.name}: {reason}"
        for other in groups:
            keys = list_differing_keys(other.runs[0], group.runs[0])
            if other is not group and keys and keys.keys() <= BUDGETS and other.name < group.name:
                yield f"{other.name} and {group.name}: differ in their budgets alone ({', '.join(keys)})"
    if any(row["num_validated"] == 1 for row in rows):
        yield "a single seed has no interval: nobody can say what of a difference is chance"


def _find_usual_group(groups: Sequence[RunGroup]) -> RunGroup:
    """Return the first group whose bits per byte can be compared with those of the most others."""

    def count_comparable(group: RunGroup) -> int:
        return sum(explain_incomparable(group.runs[0], other.runs[0]) is None for other in groups)

    return max(groups, key=count_comparable)


def _list_run_notes(group: RunGroup) -> Iterator[str]:
    for run in group.runs:
        yield from run.warnings
        if run.progress < 1:
            yield f"{run.path}: is not finished, {run.progress:.0%} of its budget"
        if run.last_validation is None:
            yield f"{run.path}: has no validation at its last step, {run.step:,}"
        if (line := describe_placement_log(run.path, run.step)) is not None:
            yield f"{run.path}: {line}"
    spent = [run.flops for run in group.runs]
    if not _are_equal_flops(spent):
        yield f"{group.name}: its seeds' FLOPs differ by {max(spent) / min(spent) - 1:.1%}"


def explain_incomparable(run: RunSummary, other: RunSummary) -> str | None:
    """Return why the validations of two runs do not belong together, None if they do."""
    if run.config.model.causal != other.config.model.causal:
        return "in one of them experts see later tokens"
    if (run.data is None) != (other.data is None):
        return "one of them has no checkpoint, so nobody knows its data"
    if (run.data or run.config.data.path) != (other.data or other.config.data.path):
        return "other data"
    if run.packing != other.packing and None not in (run.packing, other.packing):
        return f"documents are cut otherwise ({run.packing}, {other.packing} there)"
    length, their_length = run.config.data.sequence_length, other.config.data.sequence_length
    if length != their_length:
        return f"other data.sequence_length ({length}, {their_length} there)"
    tokens, their_tokens = (_count_validated_tokens(each) for each in (run, other))
    if tokens is not None and their_tokens is not None and tokens != their_tokens:
        return (
            f"validated on other text ({tokens:,} tokens, {their_tokens:,} there); see train.eval_sequences"
        )
    return None


def _count_validated_tokens(run: RunSummary) -> int | None:
    """Return the tokens that a run was validated on; for rows that do not say, as many as its recipe asks for."""
    if run.last_validation is None:
        return None
    return run.last_validation.tokens or run.config.train.eval_sequences * run.config.data.sequence_length


def _add_differences(rows: list[dict[str, Any]], groups: Mapping[str, RunGroup], baseline: str) -> list[str]:
    """Add the differences to the baseline to the rows; return what must be said of them."""
    others = {name: group for name, group in groups.items() if name != baseline}
    pairs = {name: pair_by_seed(group, groups[baseline]) for name, group in others.items()}
    refusals = {name: refuse_difference(own) for name, own in pairs.items()}
    differences = {
        name: [subtract_bits(*pair) for pair in own] for name, own in pairs.items() if refusals[name] is None
    }
    results = compare_paired(differences)
    for row in rows:
        name = row["name"]
        if name in results:
            row.update(_describe_difference(results[name], differences[name]))
        elif name != baseline:
            row.update({"difference": None, "verdict": refusals[name]})
    tested = {name: result for name, result in results.items() if result.adjusted_tail is not None}
    notes = [f"differences to {baseline} in bits per byte, seed by seed; below zero is ahead"]
    if tested:
        notes.append(
            f"verdicts: Student's t with Holm's correction over {len(tested)} comparison{'s' * (len(tested) != 1)}; "
            "where nothing differs, any of them is wrong in at most 5% of such experiments"
        )
    for name in differences:
        alone = sorted(set(groups[baseline].seeds) ^ set(groups[name].seeds))
        if alone:
            notes.append(
                f"{name}: seeds without a partner are left out of its difference: {', '.join(map(str, alone))}"
            )
    return notes


def refuse_difference(pairs: Sequence[tuple[RunSummary, RunSummary]]) -> str | None:
    """Return why pairs of runs have no difference, None if they have: each pair needs the same text and FLOPs."""
    if not pairs:
        return "no seed in common that was validated at its end"
    for run, other in pairs:
        reason = explain_incomparable(run, other)
        if reason is not None:
            return reason
        if not _are_equal_flops((run.flops, other.flops)):
            where = f", seed {run.config.seed}" if len(pairs) > 1 else ""
            more = run.flops / other.flops - 1
            return f"not at equal FLOPs ({abs(more):.1%} {'more' if more > 0 else 'less'}{where})"
    return None


def pair_by_seed(group: RunGroup, baseline: RunGroup) -> list[tuple[RunSummary, RunSummary]]:
    """Return (run, run of the baseline) for each seed that both have validated at its end."""
    partners = {run.config.seed: run for run in baseline.runs if run.last_validation}
    return [
        (run, partners[run.config.seed])
        for run in group.runs
        if run.last_validation and run.config.seed in partners
    ]


def subtract_bits(run: RunSummary, other: RunSummary) -> float:
    """Return the difference of the bits per byte at their ends; both must have been validated there."""
    assert run.last_validation is not None
    assert other.last_validation is not None
    return run.last_validation.bits_per_byte - other.last_validation.bits_per_byte


def _describe_difference(result: PairedDifference, differences: Sequence[float]) -> dict[str, Any]:
    interval = result.interval
    return {
        "pairs": interval.count,
        "difference": interval.mean,
        "difference_low": interval.low,
        "difference_high": interval.high,
        "confidence": result.confidence,
        "adjusted_p": result.adjusted_tail,
        "sign_flip_p": result.sign_flip,
        "detectable_difference": estimate_detectable_difference(differences, confidence=result.confidence),
        "verdict": describe_verdict(result),
    }


def describe_verdict(result: PairedDifference) -> str:
    """Return a difference in words as strong as its interval."""
    interval = result.interval
    if interval.low is None or interval.high is None or interval.half_width is None:
        if interval.count == 1:
            return "one pair of seeds: no interval"
        return f"{interval.mean:+.4f} in each of {interval.count} pairs, which do not vary: no interval"
    if result.excludes_zero:
        side = "ahead" if interval.mean < 0 else "behind"
        return f"{side} by {abs(interval.mean):.4f} ± {interval.half_width:.4f}"
    return f"no difference shown; up to {max(-interval.low, interval.high):.4f} is not excluded"
