"""What an inspection says of its model and its text, beside the tables."""

from dataclasses import dataclass, field
from typing import Any

from hmoe.analyze.positions import ExpertPositions
from hmoe.analyze.reading import BLOCK_TOKENS, ReadingCounts
from hmoe.analyze.tally import Tally
from hmoe.analyze.token_sample import TokenSample
from hmoe.analyze.window_sample import WindowSample
from hmoe.runs.open_model import OpenedModel


@dataclass
class TextReading:
    """What reading gives: sums, samples, and counts of what was read."""

    tally: Tally
    tokens: TokenSample
    positions: ExpertPositions
    windows: WindowSample
    counts: ReadingCounts = field(default_factory=ReadingCounts)


def describe_inspected_model(opened: OpenedModel) -> dict[str, Any]:
    """Return what a record says of the model."""
    spec, moe = opened.model.config, opened.model.config.moe
    assert moe is not None
    return {
        "name": opened.name,
        "folder": str(opened.folder),
        "step": opened.step,
        "widths": list(moe.routed_widths),
        "blocks": list(spec.moe_layers),
        "dim": spec.dim,
        "vocab": spec.vocab,
        "context": opened.context_length,
        "router": moe.router.name,
        "causal": spec.causal,
    }


def describe_inspected_text(source: str, window: int, reading: TextReading) -> dict[str, Any]:
    """Return what a record says of the text that was read: where it is from, and how much of it."""
    counts, tally = reading.counts, reading.tally
    return {
        "source": source,
        "documents": counts.documents,
        "tokens": counts.tokens,
        "window": window,
        "domains": {
            name: int(tokens.sum()) for name, tokens in zip(tally.domains, tally.domain_tokens, strict=True)
        },
        "folds": int((tally.tokens_by_fold > 0).sum()),
        "first_tokens": counts.first_tokens,
        "separators": counts.separators,
        "long_documents": counts.long_documents,
        "sampled_tokens": int((reading.windows.tokens >= 0).sum()),
    }


def list_inspection_notes(reading: TextReading, sample_tokens: int, is_causal: bool) -> list[str]:
    """Return sentences on what intervals and nulls mean, and on what was left out."""
    counts = reading.counts
    notes = [
        f"intervals (95%) leave out documents, in groups: {int((reading.tally.tokens_by_fold > 0).sum())}; "
        "random routing gives each token as many experts: any of them alike for what is by expert, layer, width and "
        "domain, elsewhere so that each expert serves as many tokens too, whatever the token is",
        "first tokens of windows, which have no context, and separators count in activation and domains, not in what "
        f"is by token: {counts.first_tokens + counts.separators:,} of {counts.tokens:,}",
    ]
    if counts.long_documents:
        notes.append(
            f"a document of more than {BLOCK_TOKENS:,} tokens counts as several for intervals: "
            f"{counts.long_documents:,} of {counts.documents:,} are so long, {counts.units:,} units in all"
        )
    if sample_tokens:
        windows = reading.windows.tokens
        notes.append(
            f"outputs, redundancy and worth of experts are of a sample of the windows: "
            f"{int((windows >= 0).sum()):,} tokens in {len(windows):,}"
        )
    if not is_causal:
        notes.append(
            "experts see later tokens, so nll is no likelihood, and not comparable with causal models'"
        )
    if counts.units < 2:
        notes.append("a single document has no intervals")
    if not sample_tokens:
        notes.append(
            "what needs every expert on the same tokens was left out: outputs, redundancy, worth of experts"
        )
    return notes
