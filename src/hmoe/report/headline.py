"""What the runs show, in words as strong as the evidence and no stronger."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hmoe.report.inputs import ReportInputs, RunRecord
from hmoe.units import format_count, format_duration, format_flops

_WINDOW = 0.05  # share of the rows that stand for the end; the beginning is the first row: routers move at once


@dataclass(frozen=True)
class Headline:
    """The first words of the page.

    Attributes:
        title: one sentence.
        points: further sentences.
    """

    title: str
    points: Sequence[str]


@dataclass(frozen=True)
class WorkShift:
    """How much of a run's work its narrow experts did, as training went on.

    Attributes:
        step: the first that was logged.
        start: share of the pairs in its row.
        end: the same in the last rows.
        uniform: that of a router without preference.
        num_layers: MoE layers.
        num_rising: of those, the ones in which it rose.
    """

    step: int
    start: float
    end: float
    uniform: float
    num_layers: int
    num_rising: int


def write_headline(inputs: ReportInputs) -> Headline:
    """Return what can be said of the runs."""
    if len(inputs.groups) > 1:
        title, points = _describe_comparison(inputs)
    elif len(inputs.records) > 1:
        title, points = _describe_seeds(inputs)
    else:
        title, points = describe_run(inputs.records[0], inputs.comparison.rows[0]), []
    unequal = [group for group in inputs.groups if len(set(inputs.get_records(group.name)[0].widths)) > 1]
    shifts = [describe_shift(group.name, inputs.get_records(group.name)) for group in unequal]
    if len(inputs.records) == 1:
        points = [*points, "One run: what of it is chance, nobody can say; train further seeds and name them all."]
    return Headline(title, [*points, *(line for line in shifts if line)])


def _describe_seeds(inputs: ReportInputs) -> tuple[str, list[str]]:
    row = inputs.comparison.rows[0]
    title = describe_run(inputs.records[0], row)
    return title, ["One recipe: how it compares with another, these runs do not tell."]


def describe_run(record: RunRecord, row: Mapping[str, Any]) -> str:
    """Return what was trained, how far, and what share of the units a token activated."""
    seeds = f"{row['num_seeds']} seeds" if row["num_seeds"] > 1 else "one run"
    text = (
        f"{row['name']} ({seeds}): {format_count(row['total_parameters'])} parameters, trained on "
        f"{format_count(row['tokens'])} tokens in {row['steps']:,.0f} steps ({format_flops(row['flops'])} FLOPs"
    )
    text += f", {format_duration(row['seconds'])})" if row["seconds"] else ")"
    if row["bits_per_byte"] is None:
        return f"{text}; it was not validated at its last step."
    half = row["bits_per_byte_half_width"]
    spread = f" ± {half:.4f}" if half is not None else ""
    return f"{text}, reaches {row['bits_per_byte']:.4f}{spread} bits per byte.{describe_activation(record, row)}"


def describe_activation(record: RunRecord, row: Mapping[str, Any]) -> str:
    """Return what share of the hidden units a token activated, against a router without preference."""
    width, total = row["mean_activated_width"], sum(record.widths)
    if width is None or not total:
        return ""
    text = f" A token activated {width / total:.1%} of the hidden units of a MoE layer"
    uniform = row["uniform_width"]
    return f"{text}; without any preference of the router it would be {uniform / total:.1%}." if uniform else f"{text}."


def _describe_comparison(inputs: ReportInputs) -> tuple[str, list[str]]:
    rows = {row["name"]: row for row in inputs.comparison.rows}
    assert inputs.baseline is not None
    others = [row for name, row in rows.items() if name != inputs.baseline]
    # Unequal experts first: they are what the page is about.
    others.sort(key=lambda row: len(set(inputs.get_records(row["name"])[0].widths)) < 2)
    sentences = [_describe_difference(row, inputs.baseline) for row in others]
    points = [*sentences[1:], *_weigh_evidence(inputs, others)]
    return sentences[0], points


def _describe_difference(row: Mapping[str, Any], baseline: str) -> str:
    """Return the verdict on one recipe as a sentence."""
    name, difference = row["name"], row.get("difference")
    if difference is None:
        return f"{name} and {baseline} cannot be compared: {row.get('verdict', 'no difference is known')}."
    low, high, pairs = row["difference_low"], row["difference_high"], row["pairs"]
    if pairs == 1:
        side = "below" if difference < 0 else "above"
        if difference == 0:
            return f"{name} and {baseline}: the same bits per byte, one run each: nobody can say what chance did."
        return (
            f"{name} is {abs(difference):.4f} bits per byte {side} {baseline}, one run each: "
            "nobody can say what of the difference is chance."
        )
    if low is None or high is None:
        return f"{name} and {baseline}: {row['verdict']}."
    at = f"over {pairs} pairs of seeds at equal FLOPs"
    if low > 0 or high < 0:
        side, half = ("better", "below") if high < 0 else ("worse", "above")
        return (
            f"{name} is {side} than {baseline}: {abs(difference):.4f} ± {(high - low) / 2:.4f} bits per byte {half} it, "
            f"{at}."
        )
    return (
        f"No difference between {name} and {baseline} is shown {at}: anything from {low:+.4f} to {high:+.4f} "
        "bits per byte fits these runs."
    )


def _weigh_evidence(inputs: ReportInputs, others: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    detectable = [row["detectable_difference"] for row in others if row.get("detectable_difference")]
    if detectable:
        yield (
            f"So many seeds would show a true difference of about {max(detectable):.2g} bits per byte in four of five "
            "such experiments; smaller ones mostly not."
        )
    if len(others) > 1:
        yield (
            f"All are compared with {inputs.baseline} only; what the others differ in from each other is not tested here."
        )


def measure_shift(record: RunRecord) -> WorkShift | None:
    """Return how the pairs moved to the narrower half of the experts; None where a run does not tell."""
    logged = [row for row in record.rows if row.get("expert_token_share")]
    rows = [row["expert_token_share"] for row in logged]
    widths = record.widths
    if len(rows) < 4 or len(set(widths)) < 2 or any(len(shares) != len(widths) for shares in rows[0]):
        return None
    narrow = sorted(range(len(widths)), key=lambda expert: widths[expert])[: len(widths) // 2]
    count = max(1, round(_WINDOW * len(rows)))
    starts, ends = (
        [
            statistics.fmean(sum(row[layer][expert] for expert in narrow) for row in part)
            for layer in range(len(rows[0]))
        ]
        for part in (rows[:1], rows[-count:])
    )
    rising = sum(end > start for start, end in zip(starts, ends, strict=True))
    return WorkShift(
        step=logged[0]["step"],
        start=statistics.fmean(starts),
        end=statistics.fmean(ends),
        uniform=len(narrow) / len(widths),
        num_layers=len(starts),
        num_rising=rising,
    )


def describe_shift(name: str, records: Sequence[RunRecord]) -> str:
    """Return whether work went to the narrow experts; "" where nothing is known of it."""
    shifts = [shift for record in records if (shift := measure_shift(record)) is not None]
    if not shifts:
        return ""
    moe = records[0].summary.config.model.moe
    assert moe is not None
    start, end = (statistics.fmean(getattr(shift, at) for shift in shifts) for at in ("start", "end"))
    layers, rising = (sum(getattr(shift, name) for shift in shifts) for name in ("num_layers", "num_rising"))
    moved = "moved to" if end > start else "moved away from"
    text = (
        f"{name}: work {moved} the narrow experts: the narrower half served {start:.0%} of the token-expert pairs at "
        f"step {shifts[0].step} and {end:.0%} at the end ({shifts[0].uniform:.0%} without preference), "
        f"rising in {rising} of {layers} layers"
    )
    text += f" of {len(shifts)} runs. " if len(shifts) > 1 else ". "
    if not moe.parameter_penalty:
        return f"{text}The recipe has no parameter penalty."
    return (
        f"{text}Its penalty of {moe.parameter_penalty:g} pulls that way; that it is the cause, only runs without it "
        "can show."
    )
