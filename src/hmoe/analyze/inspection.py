"""Look inside a model: read texts once, and measure everything that the sums, the samples and the model tell."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hmoe.analyze.difficulty import describe_tokens
from hmoe.analyze.inspection_record import (
    TextReading,
    describe_inspected_model,
    describe_inspected_text,
    list_inspection_notes,
)
from hmoe.analyze.inspection_tables import Report, choose_described_tokens, measure_sample, measure_sums
from hmoe.analyze.positions import ExpertPositions
from hmoe.analyze.reading import DocumentPart, WindowReader
from hmoe.analyze.reading_state import ReadingState
from hmoe.analyze.shared_reading import restore_together, trace_together
from hmoe.analyze.tally import Tally
from hmoe.analyze.token_sample import TokenSample
from hmoe.analyze.token_types import TokenTypes, describe_token_types, find_token_ids
from hmoe.analyze.traced_text import Row
from hmoe.analyze.window_sample import WindowSample
from hmoe.analyze.worth import measure_worth
from hmoe.errors import ConfigError, DataError
from hmoe.evaluate.harness import fingerprint_model
from hmoe.parallel.workers import ONE_WORKER, Workers
from hmoe.runs.open_model import OpenedModel

FORMAT = 1


@dataclass(frozen=True)
class InspectionOptions:
    """How a model is looked into.

    Attributes:
        window: tokens read at once.
        most_tokens: read in all, at whole passes; None: all of the text.
        sample_tokens: for what needs every expert on the same tokens, or the model once for each expert; 0: without.
        num_top: token types listed for each expert.
        chosen: texts of token types whose experts are listed; () for frequent and rare ones.
    """

    window: int
    most_tokens: int | None = None
    sample_tokens: int = 4096
    num_top: int = 20
    chosen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, least in {"window": 2, "most_tokens": 1, "sample_tokens": 0, "num_top": 1}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} = {value}: must be at least {least}", argument=name)


@dataclass(frozen=True)
class InspectedText:
    """Where the documents come from.

    Attributes:
        source: in words.
        parts: the documents.
        identity: what tells whether they are the same when reading goes on after an interruption.
        num_tokens: of all of them, None if nobody knows.
    """

    source: str
    parts: Iterable[DocumentPart]
    identity: Mapping[str, Any]
    num_tokens: int | None = None


@dataclass(frozen=True)
class Inspection:
    """What was seen.

    Attributes:
        record: JSON values: model, text, options, notes and tables.
        positions: for each layer and expert some places that it served, with context.
    """

    record: dict[str, Any]
    positions: list[Row]


def inspect_text(
    opened: OpenedModel,
    text: InspectedText,
    options: InspectionOptions,
    senses_V: Any = None,
    state: Path | None = None,
    report: Report = lambda task, done, total: None,
    workers: Workers = ONE_WORKER,
) -> Inspection:
    """Read texts with a model and return everything that is measured.

    Args:
        opened: the model.
        text: the documents.
        options: how.
        senses_V: number of senses of each token type, NaN where nobody knows; None without a list.
        state: file for what was read so far, from which the same call goes on after an interruption.
        report: called with the task, what is done and all of it.
        workers: processes that share the reading; this is the first of them, and all others call `help_inspecting`.

    Raises:
        ConfigError: for a dense model, or a token that does not exist.
        DataError: if there is no text.
    """
    model = opened.model
    with workers.together():
        types, chosen = _prepare(opened, options)
    reading = _read(opened, text, options, types, state, report, workers)
    with workers.together():
        if not reading.counts.tokens:
            raise DataError(f"{text.source}: nothing to look at, the text is empty")
    report("measuring", 0, None)
    tables = measure_sums(reading, types, senses_V, options.num_top, opened.model.embed.weight)
    ids = chosen or choose_described_tokens(reading.tally)
    tables |= describe_tokens(reading.tally, ids, types.texts)
    if options.sample_tokens:
        tables |= measure_sample(opened.model, reading, options.sample_tokens, tables, report, workers)
    return Inspection(
        {
            "format": FORMAT,
            "model": describe_inspected_model(opened),
            "text": describe_inspected_text(text.source, options.window, reading),
            "options": {**asdict(options), "chosen": list(options.chosen)},
            "notes": list_inspection_notes(reading, options.sample_tokens, model.config.causal),
            "tables": tables,
        },
        reading.positions.list_rows(opened.tokenizer),
    )


def help_inspecting(
    opened: OpenedModel, text: InspectedText, options: InspectionOptions, state: Path | None, workers: Workers
) -> None:
    """Do the part of a process that is not the first one in `inspect_text`, with the same arguments."""
    with workers.together():
        types, _ = _prepare(opened, options)
    stored = _open_state(opened, text, options, types, state, ("windows",))
    num_passes = restore_together(stored, state, workers)
    windows: Any = stored.sums["windows"]  # not before: a damaged file makes others
    reader = WindowReader(options.window, types, opened.tokenizer.separator, [])
    batches = reader.cut_windows(_limit_parts(text.parts, options.most_tokens))
    for batch, _ in trace_together(opened.model, itertools.islice(batches, num_passes, None), workers):
        windows.update(batch)
    with workers.together():
        pass  # the first one tells of an empty text
    if options.sample_tokens:
        measure_worth(opened.model, windows.list_windows(), workers=workers)


def _prepare(opened: OpenedModel, options: InspectionOptions) -> tuple[TokenTypes, list[int]]:
    """Return the vocabulary, and the ids of the token types that are to be described."""
    moe = opened.model.config.moe
    if moe is None or not opened.model.config.moe_layers:
        raise ConfigError(f"{opened.name}: is dense and has no experts to look at")
    types = describe_token_types(opened.tokenizer, opened.model.config.vocab)
    return types, _find_chosen(types, options.chosen)


def _read(
    opened: OpenedModel,
    text: InspectedText,
    options: InspectionOptions,
    types: TokenTypes,
    state: Path | None,
    report: Report,
    workers: Workers,
) -> TextReading:
    """Read the texts, from where an interrupted reading had come."""
    stored = _open_state(opened, text, options, types, state)
    num_passes = restore_together(stored, state, workers)
    reading = TextReading(**stored.sums)  # type: ignore[arg-type]
    reader = WindowReader(options.window, types, opened.tokenizer.separator, reading.tally.domains)
    total = min(filter(None, (text.num_tokens, options.most_tokens)), default=None)

    def report_reading() -> None:
        done = reader.counts.tokens
        report("reading", min(done, total) if total else done, total)

    report("reading", 0, total)
    batches = reader.cut_windows(_limit_parts(text.parts, options.most_tokens))
    for _ in itertools.islice(batches, num_passes):
        report_reading()
    index = num_passes
    for index, (batch, traced) in enumerate(trace_together(opened.model, batches, workers), num_passes + 1):
        assert traced is not None  # this is the first process
        for item in (reading.tally, reading.tokens, reading.positions):
            item.update(traced)
        reading.windows.update(batch)
        stored.save_sometimes(index)
        report_reading()
    if index > num_passes:
        stored.save(index, True)
    reading.tally.finish()
    reading.counts = reader.counts
    return reading


def _open_state(
    opened: OpenedModel,
    text: InspectedText,
    options: InspectionOptions,
    types: TokenTypes,
    path: Path | None,
    names: Sequence[str] = ("tally", "tokens", "positions", "windows"),
) -> ReadingState:
    """Return sums and samples, those of these names, without anything in them, and the file that may have some."""
    spec, moe = opened.model.config, opened.model.config.moe
    assert moe is not None
    widths, blocks = tuple(moe.routed_widths), tuple(spec.moe_layers)

    def make_sums() -> dict[str, Any]:
        makers: dict[str, Callable[[], Any]] = {
            "tally": lambda: Tally(widths, blocks, spec.vocab, types.labels),
            "tokens": lambda: TokenSample(len(blocks)),
            "positions": lambda: ExpertPositions(len(blocks), len(widths)),
            "windows": lambda: WindowSample(options.window, options.sample_tokens),
        }
        return {name: makers[name]() for name in names}

    identity = {
        "model": None if path is None else fingerprint_model(opened.model, opened.tokenizer),
        "text": dict(text.identity),
        "options": [options.window, options.sample_tokens, options.most_tokens],
    }
    return ReadingState(path, identity, make_sums)


def _limit_parts(parts: Iterable[DocumentPart], most_tokens: int | None) -> Iterator[DocumentPart]:
    """Yield documents up to the one with which so many tokens are reached; they stay whole."""
    num_tokens = 0
    for part in parts:
        if part.is_first and most_tokens is not None and num_tokens >= most_tokens:
            return
        num_tokens += len(part.tokens)
        yield part


def _find_chosen(types: TokenTypes, chosen: tuple[str, ...]) -> list[int]:
    """Return the ids of token types by their texts."""
    ids = find_token_ids(types, chosen)
    for text, matches in ids.items():
        if not matches:
            raise ConfigError(f"chosen = {text!r}: no token type has this text", argument="chosen")
    return [token for matches in ids.values() for token in matches]
