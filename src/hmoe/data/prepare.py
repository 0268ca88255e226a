"""`hmoe data prepare`: text files -> token shards, the same bytes however often it is killed and started again.

The input is cut into segments of about `segment_bytes` of text. A segment's shards are written beside their final
names and renamed, then `progress.json` says where the next segment starts; only what it names counts.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hmoe.config.run import bpe_size
from hmoe.data.documents import START, Documents, Position
from hmoe.data.inputs import Source, sources
from hmoe.data.long_text import cut_text
from hmoe.data.losses import Losses
from hmoe.data.segment import Segment, hash64
from hmoe.data.shards import Index, Shard, open_index, token_dtype, write_index
from hmoe.data.tokenizer import ByteTokenizer, Tokenizer, load, train_bpe
from hmoe.data.tokenizer_folder import write_tokenizer
from hmoe.errors import ConfigError, DataError, RunBusyError
from hmoe.storage import lock_file, write_atomic

_RULE = 2  # how documents become shards; a preparation that was begun by another one is not continued
_BPE_SAMPLE_BYTES = 64 << 20
_SCAN_BYTES = 256 << 20  # inputs up to this size are scanned so that at least one document is held out


@dataclass(frozen=True)
class Request:
    """What to prepare.

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
            raise ConfigError(f"validation = {self.validation}, must be at least 0 and below 1")
        bpe_size(self.tokenizer)
        if self.max_bad < 0 or self.segment_bytes < 1:
            raise ConfigError(
                f"max_bad = {self.max_bad}, segment_bytes = {self.segment_bytes}: must not be negative or 0"
            )
        weights = self.weights
        if weights is not None and not (any(weights.values()) and all(0 <= w <= 1e12 for w in weights.values())):
            raise ConfigError(f"weights = {weights}: must be from 0 to 1e12, one of them above 0")
        if self.separator is not None and (self.tokenizer == "bytes" or bpe_size(self.tokenizer) is not None):
            raise ConfigError(f"separator = {self.separator!r}: has no effect with {self.tokenizer}, which has its own")

    def begin_of(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Tokens before every document."""
        return tokenizer.begin if self.begin is None else self.begin


class Progress(NamedTuple):
    """What is reported while preparing."""

    file: int
    files: int
    documents: int
    text_bytes: int
    tokens: int


Report = Callable[[Progress], None]


def prepare(
    request: Request,
    out: Path,
    report: Report = lambda progress: None,
    wait: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Index:
    """Write shards, tokenizer and index.json to `out`; continue where an earlier, killed call stopped.

    With `wait`, another process that is preparing `out` is waited for. `say` is told what is left out or skipped.

    Raises:
        DataError: for bad input (file and line named), or if `out` holds something else.
        RunBusyError: if another process is preparing `out`.
    """
    files = sources(list(request.inputs), leave_out=out, say=say)
    key = _key(request, files)
    out.mkdir(parents=True, exist_ok=True)
    if (out / "index.json").exists():  # it appears by one rename, so this needs no lock
        return _finished(out, key)
    with (out / ".lock").open("w") as lock:
        if not lock_file(lock, wait):
            raise RunBusyError(f"{out}: another process is preparing this folder")
        if not (out / "index.json").exists():
            _run(request, files, key, out, report, say)
    return _finished(out, key)


def _finished(out: Path, key: dict[str, Any]) -> Index:
    index = open_index(out)
    if index.request != key:
        raise DataError(
            f"{out}: already holds data of other inputs or options ({_differing(key, index.request)}); choose another --out"
        )
    index.verify()
    (out / "progress.json").unlink(missing_ok=True)  # killed between the last two steps
    return index


def _run(
    request: Request, files: list[Source], key: dict[str, Any], out: Path, report: Report, say: Callable[[str], None]
) -> None:
    progress = _load_progress(out, key)
    tokenizer = _tokenizer(request, files, out, report)
    threshold = progress["threshold"]
    if threshold is None:
        threshold = _validation_threshold(request, files, report)
    shards = [Shard(**shard) for shard in progress["shards"]]
    position, segment = Position(*progress["position"]), progress["segment"]
    begin, losses = request.begin_of(tokenizer), Losses(**progress.get("losses", {}))
    documents = Documents(files, request.text_field, request.max_bad, position, say=say)
    items = iter(documents)
    done = False
    while not done:
        writer = Segment(out, segment, tokenizer, threshold, begin)
        done = writer.fill(items, request.segment_bytes, partial(_report, report, writer, files, shards))
        shards += writer.publish()
        # At the end the documents that were skipped after the last one count too.
        position = documents.position if done else writer.position or position
        segment, losses = segment + 1, losses + writer.losses
        state = {
            "rule": _RULE,
            "key": key,
            "threshold": threshold,
            "position": position,
            "segment": segment,
            "losses": dataclasses.asdict(losses),
            "shards": [dataclasses.asdict(shard) for shard in shards],
        }
        write_atomic(out / "progress.json", json.dumps(state).encode())
    if not any(shard.split == "train" for shard in shards):
        raise DataError(f"{', '.join(request.inputs)}: no document to train on")
    _check_weights(request, shards)
    fields = {
        "dtype": token_dtype(tokenizer.vocab_size),
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "separator": tokenizer.separator,
        "weights": request.weights,
        "skipped_documents": position.skipped,
        "empty_documents": position.empty,
        "request": key,
        **({"begin": list(begin)} if begin else {}),
        **({"losses": dataclasses.asdict(losses)} if losses.describe() else {}),
    }
    write_index(out, fields, shards)
    (out / "progress.json").unlink()


def _read_once(files: list[Source], request: Request, report: Report) -> Documents:
    """All documents, for a pass that writes nothing; `report` is told of files only."""
    total = len(files)
    return Documents(
        files,
        request.text_field,
        request.max_bad,
        begin_file=lambda number: report(Progress(number + 1, total, 0, 0, 0)),
    )


def _validation_threshold(request: Request, files: list[Source], report: Report) -> int:
    """Documents whose hash is below this are held out; in small inputs at least one of two documents is."""
    threshold = int(request.validation * 2**64)
    if not request.validation or sum(f.path.stat().st_size for f in files) > _SCAN_BYTES:
        return threshold
    hashes = {hash64(item.document.text.encode()) for item in _read_once(files, request, report)}
    return threshold if len(hashes) < 2 else max(threshold, min(hashes) + 1)


def _tokenizer(request: Request, files: list[Source], out: Path, report: Report) -> Tokenizer:
    if request.tokenizer == "bytes":
        return ByteTokenizer()
    size = bpe_size(request.tokenizer)
    if size is None:
        tokenizer = load(request.tokenizer, request.separator)
    elif (out / "tokenizer.json").exists():
        return load(out)
    else:
        tokenizer = train_bpe(_bpe_sample(request, files, report), size)
    write_tokenizer(out, tokenizer)
    return tokenizer


def _bpe_sample(request: Request, files: list[Source], report: Report) -> Iterator[str]:
    """All documents, long ones in pieces, or of a large input those whose hash falls into a sample of about 64 MB."""
    share = _BPE_SAMPLE_BYTES / max(sum(f.path.stat().st_size for f in files), 1)
    for item in _read_once(files, request, report):
        for piece, _ in cut_text(item.document.text, None):
            # The hash's low bits: its high bits choose the validation split.
            if share >= 1 or hash64(piece.encode()) % 2**32 < share * 2**32:
                yield piece


def _load_progress(out: Path, key: dict[str, Any]) -> dict[str, Any]:
    """Where an earlier call stopped. The file is there before anything else, so what lies beside it is of this key."""
    file = out / "progress.json"
    if not file.exists():
        foreign = sorted(path.name for path in out.iterdir() if path.name not in (".lock", ".progress.json.tmp"))
        if foreign:
            raise DataError(f"{out}: is not empty (holds {foreign[0]}); choose another --out")
        start: dict[str, Any] = {
            "rule": _RULE,
            "key": key,
            "threshold": None,
            "position": START,
            "segment": 0,
            "shards": [],
        }
        write_atomic(file, json.dumps(start).encode())
    for litter in out.glob(".*.tmp"):
        litter.unlink()
    try:
        state: dict[str, Any] = json.loads(file.read_bytes())
        same = state["key"] == key
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{file}: damaged; delete {out} and prepare again") from None
    if state.get("rule") != _RULE:
        raise DataError(f"{out}: was begun by another version, which cuts texts otherwise; delete it and prepare again")
    if not same:
        differing = _differing(key, state["key"])
        raise DataError(
            f"{out}: was begun with other inputs or options ({differing}); choose another --out or delete it"
        )
    return state


def _key(request: Request, files: list[Source]) -> dict[str, Any]:
    """What the shards depend on: options, and of every input file its name, size, and a hash of its two ends."""
    left_out = {"inputs", "weights", "begin"} | (
        {"separator"} if request.separator is None else set()
    )  # as earlier versions
    options = {k: v for k, v in dataclasses.asdict(request).items() if k not in left_out}
    named = [[s.domain or s.folder_domain, s.path.name, s.path.stat().st_size, _mark(s.path)] for s in files]
    if request.tokenizer != "bytes" and bpe_size(request.tokenizer) is None:
        tokenizer = load(request.tokenizer, request.separator)
        begin = request.begin_of(tokenizer)
        options |= {"tokenizer": tokenizer.fingerprint} | ({"begin": list(begin)} if begin else {})
    return {**options, "weights": request.weights, "files": named}


def _differing(key: dict[str, Any], other: dict[str, Any]) -> str:
    """Names of the options that two keys have unlike; `begin` is what the tokenizer puts before every document."""
    return ", ".join(sorted(name for name in key.keys() | other.keys() if key.get(name) != other.get(name)))


def _mark(path: Path) -> str:
    """A hash of the first and last 64 KiB: reading terabytes whole to start would be too slow."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    with file:
        head = file.read(1 << 16)
        file.seek(max(0, path.stat().st_size - (1 << 16)))
        return hashlib.sha256(head + file.read()).hexdigest()[:16]


def _check_weights(request: Request, shards: list[Shard]) -> None:
    known = sorted({shard.domain for shard in shards})
    for domain in request.weights or {}:
        if domain not in known:
            raise DataError(f"weight of {domain!r}: no such domain in the input; it has {', '.join(known)}")


def _report(report: Report, writer: Segment, files: list[Source], shards: list[Shard]) -> None:
    counts = [*writer.counts.values(), *([s.tokens, s.documents, s.text_bytes] for s in shards)]
    tokens, documents, text_bytes = (sum(column) for column in zip(*counts, strict=True))
    report(Progress(writer.position.file + 1 if writer.position else 0, len(files), documents, text_bytes, tokens))
