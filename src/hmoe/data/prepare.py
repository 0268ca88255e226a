"""Prepare text files as token shards: the same bytes however often it is killed and started again.

The input is cut into segments of about `segment_bytes` of text. A segment's shards are written beside their
final names and renamed, then `progress.json` says where the next segment starts; only what it names counts.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hmoe.config.run import parse_bpe_size
from hmoe.data.documents import Documents
from hmoe.data.inputs import InputFile, hash_ends, list_input_files
from hmoe.data.long_text import cut_text
from hmoe.data.progress import (
    PrepareState,
    describe_difference,
    load_progress,
    remove_progress,
    save_progress,
)
from hmoe.data.segment import Segment, hash_text
from hmoe.data.shards import Index, Shard, choose_token_dtype, open_index, write_index
from hmoe.data.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer, train_bpe
from hmoe.data.tokenizer_folder import write_tokenizer
from hmoe.errors import ConfigError, DataError, RunBusyError
from hmoe.storage import lock_file

_BPE_SAMPLE_BYTES = 64 << 20  # of text that a tokenizer is trained on, about
_SCAN_BYTES = 256 << 20  # inputs up to this size are scanned so that at least one document is held out


@dataclass(frozen=True)
class PrepareRequest:
    """What to prepare, and how.

    Attributes:
        inputs: `PATH` or `domain=PATH`, files or folders.
        tokenizer: bytes, bpe:SIZE (trained on the input), or the path of a tokenizer.
        text_field: field of jsonl and parquet records; None: text, raw_content or content.
        validation: share of documents held out, chosen by their hash.
        weights: sampling weight per domain; None samples in proportion to size.
        max_bad: unusable documents to skip before giving up.
        segment_bytes: text bytes after which new shards begin.
        separator: token that is put after every document, for a tokenizer.json that does not name its own.
        begin: tokens before every document; None: those that the tokenizer's own post-processor puts there.

    Raises:
        ConfigError: for a value out of range, or a separator for a tokenizer that has its own.
    """

    inputs: Sequence[str]
    tokenizer: str = "bpe:8192"
    text_field: str | None = None
    validation: float = 0.01
    weights: dict[str, float] | None = None
    max_bad: int = 0
    segment_bytes: int = 256 << 20
    separator: str | None = None
    begin: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.validation < 1:
            raise ConfigError(
                f"validation = {self.validation}, must be at least 0 and below 1", argument="validation"
            )
        parse_bpe_size(self.tokenizer)  # refuses a size out of range
        if self.max_bad < 0:
            raise ConfigError(f"max_bad = {self.max_bad}, must be at least 0", argument="max_bad")
        if self.segment_bytes < 1:
            raise ConfigError(
                f"segment_bytes = {self.segment_bytes}, must be at least 1", argument="segment_bytes"
            )
        weights = self.weights
        if weights is not None and not (
            any(weights.values()) and all(0 <= w <= 1e12 for w in weights.values())
        ):
            raise ConfigError(f"weights = {weights}, must be from 0 to 1e12, one of them above 0")
        if self.separator is not None and (
            self.tokenizer == "bytes" or parse_bpe_size(self.tokenizer) is not None
        ):
            raise ConfigError(
                f"separator = {self.separator!r} has no effect with {self.tokenizer}, which has its own",
                argument="separator",
            )

    def begin_of(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Return the tokens before every document: those asked for, or the tokenizer's own."""
        return tokenizer.begin if self.begin is None else self.begin


class PrepareProgress(NamedTuple):
    """How far preparing is: `file` of `files`, and the documents, bytes and tokens that were written."""

    file: int
    files: int
    documents: int
    text_bytes: int
    tokens: int


PrepareReport = Callable[[PrepareProgress], None]


def prepare_data(
    request: PrepareRequest,
    out: Path,
    report: PrepareReport = lambda progress: None,
    wait: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Index:
    """Write shards, tokenizer and index.json to `out`; continue where an earlier, killed call stopped.

    Args:
        request: what to prepare.
        out: folder for the data; empty, absent, or begun by the same request.
        report: called with the progress after every few megabytes of text.
        wait: wait for another process that is preparing `out` instead of raising.
        say: called with a line for what is left out or skipped.

    Raises:
        DataError: for bad input (file and line named), or if `out` holds something else.
        RunBusyError: if another process is preparing `out`.
    """
    files = list_input_files(list(request.inputs), leave_out=out, say=say)
    key = _make_key(request, files)
    out.mkdir(parents=True, exist_ok=True)
    if (out / "index.json").exists():  # it appears by one rename, so this needs no lock
        return _open_finished(out, key)
    with (out / ".lock").open("w") as lock:
        if not lock_file(lock, wait):
            raise RunBusyError(f"{out}: another process is preparing this folder")
        if not (out / "index.json").exists():  # another process may have finished while this one waited
            _write_folder(request, files, key, out, report, say)
    return _open_finished(out, key)


def _open_finished(out: Path, key: dict[str, Any]) -> Index:
    index = open_index(out)
    if index.request != key:
        differing = describe_difference(key, index.request)
        raise DataError(
            f"out = {out}: already holds data of other inputs or options ({differing}); choose another folder",
            argument="out",
        )
    index.verify()
    remove_progress(out)  # a call may be killed between the last two steps
    return index


def _write_folder(
    request: PrepareRequest,
    files: list[InputFile],
    key: dict[str, Any],
    out: Path,
    report: PrepareReport,
    say: Callable[[str], None],
) -> None:
    """Write what a folder of data still lacks: tokenizer, segment after segment, and the index last."""
    state = load_progress(out, key)
    tokenizer = _make_tokenizer(request, files, out, report)
    threshold = _choose_threshold(request, files, report) if state.threshold is None else state.threshold
    documents = Documents(files, request.text_field, request.max_bad, state.position, say=say)
    items = iter(documents)
    is_done = False
    while not is_done:
        segment = Segment(out, state.segment, tokenizer, threshold, request.begin_of(tokenizer))
        report_written = partial(_report_progress, report, segment, files, state.shards)
        is_done = segment.fill(items, request.segment_bytes, report_written)
        state = PrepareState(
            threshold=threshold,
            # At the end the documents that were skipped after the last one count too.
            position=documents.position if is_done else segment.position or state.position,
            segment=state.segment + 1,
            shards=(*state.shards, *segment.publish()),
            losses=state.losses + segment.losses,
        )
        save_progress(out, key, state)
    _check_shards(request, state.shards)
    write_index(out, _index_fields(request, key, tokenizer, state), list(state.shards))
    remove_progress(out)


def _index_fields(
    request: PrepareRequest, key: dict[str, Any], tokenizer: Tokenizer, state: PrepareState
) -> dict[str, Any]:
    """Return what index.json says besides the shards; empty fields are left out, as in earlier versions."""
    begin = request.begin_of(tokenizer)
    return {
        "dtype": choose_token_dtype(tokenizer.vocab_size),
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "separator": tokenizer.separator,
        "weights": request.weights,
        "skipped_documents": state.position.skipped,
        "empty_documents": state.position.empty,
        "request": key,
        **({"begin": list(begin)} if begin else {}),
        **({"losses": dataclasses.asdict(state.losses)} if state.losses.describe() else {}),
    }


def _read_all(files: list[InputFile], request: PrepareRequest, report: PrepareReport) -> Documents:
    """Read all documents in a pass that writes nothing, so that `report` is told of files only."""
    return Documents(
        files,
        request.text_field,
        request.max_bad,
        begin_file=lambda file: report(PrepareProgress(file + 1, len(files), 0, 0, 0)),
    )


def _choose_threshold(request: PrepareRequest, files: list[InputFile], report: PrepareReport) -> int:
    """Return the hash below which documents are held out; small inputs hold out one of two documents."""
    threshold = int(request.validation * 2**64)
    if not request.validation or sum(source.path.stat().st_size for source in files) > _SCAN_BYTES:
        return threshold
    hashes = {hash_text(item.document.text.encode()) for item in _read_all(files, request, report)}
    return threshold if len(hashes) < 2 else max(threshold, min(hashes) + 1)


def _make_tokenizer(
    request: PrepareRequest, files: list[InputFile], out: Path, report: PrepareReport
) -> Tokenizer:
    if request.tokenizer == "bytes":
        return ByteTokenizer()
    size = parse_bpe_size(request.tokenizer)
    if size is None:
        tokenizer = load_tokenizer(request.tokenizer, request.separator)
    elif (out / "tokenizer.json").exists():  # trained before this call, which continues a killed one
        return load_tokenizer(out)
    else:
        tokenizer = train_bpe(_sample_texts(request, files, report), size)
    write_tokenizer(out, tokenizer)
    return tokenizer


def _sample_texts(request: PrepareRequest, files: list[InputFile], report: PrepareReport) -> Iterator[str]:
    """Give all documents, long ones in pieces; of a large input a sample of about 64 MB, chosen by hash."""
    share = _BPE_SAMPLE_BYTES / max(sum(source.path.stat().st_size for source in files), 1)
    for item in _read_all(files, request, report):
        for piece, _ in cut_text(item.document.text, None):
            # The hash's low bits: its high bits choose the validation split.
            if share >= 1 or hash_text(piece.encode()) % 2**32 < share * 2**32:
                yield piece


def _make_key(request: PrepareRequest, files: list[InputFile]) -> dict[str, Any]:
    """Return what the shards depend on: options, and every input file's name, size and hash."""
    left_out = {"inputs", "weights", "begin"}
    if request.separator is None:  # earlier versions had no such option, and their folders stay valid
        left_out.add("separator")
    options = {name: value for name, value in dataclasses.asdict(request).items() if name not in left_out}
    named = [
        [
            source.domain or source.folder_domain,
            source.path.name,
            source.path.stat().st_size,
            hash_ends(source.path),
        ]
        for source in files
    ]
    if request.tokenizer != "bytes" and parse_bpe_size(request.tokenizer) is None:
        tokenizer = load_tokenizer(request.tokenizer, request.separator)
        begin = request.begin_of(tokenizer)
        options |= {"tokenizer": tokenizer.fingerprint} | ({"begin": list(begin)} if begin else {})
    return {**options, "weights": request.weights, "files": named}


def _check_shards(request: PrepareRequest, shards: Sequence[Shard]) -> None:
    """Raise DataError if there is nothing to train on, or a weight of a domain that is not in the input."""
    if not any(shard.split == "train" for shard in shards):
        raise DataError(f"{', '.join(request.inputs)}: no document to train on")
    known = sorted({shard.domain for shard in shards})
    for domain in request.weights or {}:
        if domain not in known:
            raise DataError(f"weight of {domain!r}: no such domain in the input; it has {', '.join(known)}")


def _report_progress(
    report: PrepareReport, segment: Segment, files: list[InputFile], shards: Sequence[Shard]
) -> None:
    counts = [
        *segment.counts.values(),
        *([shard.tokens, shard.documents, shard.text_bytes] for shard in shards),
    ]
    tokens, documents, text_bytes = (sum(column) for column in zip(*counts, strict=True))
    file = segment.position.file + 1 if segment.position else 0
    report(PrepareProgress(file, len(files), documents, text_bytes, tokens))
