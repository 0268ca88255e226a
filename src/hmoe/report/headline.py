"""What the runs show, in words as strong as the evidence and no stronger."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hmoe.report.inputs import ReportInputs, RunRecord
from hmoe.units import format_count, format_duration, format_flops

_WINDOW = (
    0.05  # share of the rows that stand for the end; the beginning is the first row: routers move at once
)


@dataclass(frozen=True)
class Headline:
    """The first words of the page.

    Attributes:
        title: one sentence.
        lead: the numbers that it rests on.
        points: further sentences.
    """

    title: str
    lead: str
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
        title, lead, points = _describe_comparison(inputs)
    else:
        record, row = inputs.records[0], inputs.comparison.rows[0]
        title, lead, points = _describe_loss(row), _describe_training(record, row), _list_cautions(inputs)
    for group in inputs.groups:
        text = describe_shift(group.name, inputs.get_records(group.name))
        points += [text] if text else []
    return Headline(title, lead, points)


def _describe_loss(row: Mapping[str, Any]) -> str:
    """Return how well one recipe predicts text."""
    if row["bits_per_byte"] is None:
        return f"{row['name']} was not validated at its last step."
    half = row["bits_per_byte_half_width"]
    spread = f" ± {half:.4f}" if half is not None else ""
    return f"{row['name']} reaches {row['bits_per_byte']:.4f}{spread} bits per byte."


def _describe_training(record: RunRecord, row: Mapping[str, Any]) -> str:
    """Return what was trained, how far, and what share of the units a token activated."""
    seeds = f"{row['num_seeds']} seeds of" if row["num_seeds"] > 1 else "One run of"
    time = f", {format_duration(row['seconds'])}" if row["seconds"] else ""
    text = (
        f"{seeds} a model of {format_count(row['total_parameters'])} parameters, trained on "
        f"{format_count(row['tokens'])} tokens in {row['steps']:,.0f} steps ({format_flops(row['flops'])} FLOPs{time})."
    )
    width, uniform, total = row["mean_activated_width"], row["uniform_width"], sum(record.widths)
    if width is None or not total:
        return text
    text += " In training, mean over all steps, a token activated "
    text += f"{width / total:.1%} of the hidden units of a MoE layer"
    return (
        f"{text}; without any preference of the router it would be {uniform / total:.1%}."
        if uniform
        else f"{text}."
    )


def _list_cautions(inputs: ReportInputs) -> list[str]:
    if len(inputs.records) > 1:
        return ["One recipe: how it compares with another, these runs do not tell."]
    return ["One run: what of it is chance, nobody can say. Train further seeds and name them all."]


def _describe_comparison(inputs: ReportInputs) -> tuple[str, str, list[str]]:
    rows = {row["name"]: row for row in inputs.comparison.rows}
    assert inputs.baseline is not None
    others = [row for name, row in rows.items() if name != inputs.baseline]
    # Unequal experts first: they are what the page is about.
    others.sort(key=lambda row: len(set(inputs.get_records(row["name"])[0].widths)) < 2)
    sentences = [_describe_difference(row, inputs.baseline) for row in others]
    points = [" ".join(sentence) for sentence in sentences[1:]]
    return *sentences[0], [*points, *_weigh_evidence(inputs, others)]


def _describe_difference(row: Mapping[str, Any], baseline: str) -> tuple[str, str]:
    """Return the verdict on one recipe as a sentence, and the numbers that it rests on as another."""
    name, difference = row["name"], row.get("difference")
    if difference is None:
        return (
            f"{name} and {baseline} cannot be compared.",
            f"Why: {row.get('verdict', 'no difference is known')}.",
        )
    low, high, pairs = row["difference_low"], row["difference_high"], row["pairs"]
    if pairs == 1 and difference == 0:
        return (
            f"One run each: {name} and {baseline} are alike.",
            "With a single pair of seeds that tells little.",
        )
    if pairs == 1:
        side = "below" if difference < 0 else "above"
        return (
            f"One run each: whether {name} or {baseline} is better, nobody can say.",
            f"{name} is {abs(difference):.4f} bits per byte {side} {baseline}; "
            "with a single pair of seeds it is unknown what of that is chance.",
        )
    if low is None or high is None:
        return f"{name} and {baseline} have no interval.", f"{row['verdict']}."
    pairs_of = f"{pairs} pairs of seeds at equal FLOPs"
    if low > 0 or high < 0:
        side, half = ("better", "fewer") if high < 0 else ("worse", "more")
        return (
            f"{name} is {side} than {baseline} by {abs(difference):.4f} ± {(high - low) / 2:.4f} bits per byte.",
            f"It needs that many {half} bits to write the same held-out text, over {pairs_of}.",
        )
    span = f"{show_signed(low)} to {show_signed(high)}"
    return (
        f"These runs show no difference between {name} and {baseline}.",
        f"Over {pairs_of} anything from {span} bits per byte fits them; below zero {name} would be better.",
    )


def show_signed(value: float, digits: int = 4) -> str:
    """Return a difference with its sign, a real minus where it is negative."""
    return f"{value:+.{digits}f}".replace("-", "\u2212")


def _weigh_evidence(inputs: ReportInputs, others: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    detectable = [row["detectable_difference"] for row in others if row.get("detectable_difference")]
    if detectable:
        yield (
            f"So few seeds would show a true difference of {max(detectable):.2g} bits per byte in about four of five "
            "such experiments, and smaller ones more rarely."
        )
    if len(others) > 1:
        yield (
            f"All are compared with {inputs.baseline} only; how the others compare with each other is not tested here."
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
    if len(set(records[0].widths)) < 2:
        return ""
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
