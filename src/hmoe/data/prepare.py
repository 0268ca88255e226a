"""`hmoe data prepare`: text files -> token shards, the same bytes however often it is killed and started again.

The input is cut into segments of about `segment_bytes` of text. A segment's shards are written beside their final
names and renamed, then `progress.json` says where the next segment starts; only what it names counts.
"""

import dataclasses
import fcntl
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hmoe.data.readers import Document, Source, read, sources
from hmoe.data.shards import Index, Shard, open_index, token_dtype, write_index
from hmoe.data.tokenizer import ByteTokenizer, Tokenizer, bpe_size, load, train_bpe
from hmoe.errors import ConfigError, DataError, RunBusyError
from hmoe.files import fsync, sha256, write_atomic

_BATCH_BYTES = 4 << 20  # text handed to the tokenizer at once, which spreads it over the cores
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
    """

    inputs: Sequence[str]
    tokenizer: str = "bpe:8192"
    text_field: str | None = None
    validation: float = 0.01
    weights: dict[str, float] | None = None
    max_bad: int = 0
    segment_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        if not 0 <= self.validation < 1:
            raise ConfigError(f"validation = {self.validation}, must be at least 0 and below 1")
        if self.max_bad < 0 or self.segment_bytes < 1:
            raise ConfigError(
                f"max_bad = {self.max_bad}, segment_bytes = {self.segment_bytes}: must not be negative or 0"
            )
        bpe_size(self.tokenizer)


class Progress(NamedTuple):
    """What is reported while preparing."""

    file: int
    files: int
    documents: int
    text_bytes: int
    tokens: int


Report = Callable[[Progress], None]


class _Position(NamedTuple):
    """Where the next segment starts, and how many documents were skipped before it."""

    file: int
    record: int
    skipped: int


class _Item(NamedTuple):
    document: Document
    after: _Position


def prepare(request: Request, out: Path, report: Report = lambda progress: None, wait: bool = False) -> Index:
    """Write shards, tokenizer and index.json to `out`; continue where an earlier, killed call stopped.

    With `wait`, another process that is preparing `out` is waited for.

    Raises:
        DataError: for bad input (file and line named), or if `out` holds something else.
        RunBusyError: if another process is preparing `out`.
    """
    files = sources(list(request.inputs))
    key = _key(request, files)
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            raise RunBusyError(f"{out}: another process is preparing this folder") from None
        if (out / "index.json").exists():
            index = open_index(out)
            if index.request != key:
                raise DataError(f"{out}: already holds data of other inputs or options; choose another --out")
            (out / "progress.json").unlink(missing_ok=True)  # killed between the last two steps
            return index
        _run(request, files, key, out, report)
    return open_index(out)


def _run(request: Request, files: list[Source], key: dict[str, Any], out: Path, report: Report) -> None:
    progress = _load_progress(out, key)
    tokenizer = _tokenizer(request, files, out)
    threshold = progress["threshold"] if progress else _validation_threshold(request, files)
    shards = [Shard(**shard) for shard in progress["shards"]] if progress else []
    position = _Position(*progress["position"]) if progress else _Position(0, 0, 0)
    segment = progress["segment"] if progress else 0
    items = _items(files, request, position)
    done = False
    while not done:
        writer = _Segment(out, segment, tokenizer, threshold)
        done = writer.fill(items, request.segment_bytes, partial(_report, report, writer, files, shards))
        shards += writer.publish()
        position, segment = writer.position or position, segment + 1
        state = {
            "key": key,
            "threshold": threshold,
            "position": position,
            "segment": segment,
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
        "request": key,
    }
    write_index(out, fields, shards)
    (out / "progress.json").unlink()


class _Segment:
    """Shards of one stretch of input, one per split and domain, written as the documents come."""

    def __init__(self, out: Path, number: int, tokenizer: Tokenizer, threshold: int) -> None:
        self.out, self.number, self.tokenizer, self.threshold = out, number, tokenizer, threshold
        self.counts: dict[tuple[str, str], list[int]] = {}  # (split, domain) -> tokens, documents, text bytes
        self.files: dict[tuple[str, str], Any] = {}
        self.position: _Position | None = None
        self.dtype = token_dtype(tokenizer.vocab_size)

    def fill(self, items: Iterator[_Item], segment_bytes: int, report: Callable[[], None]) -> bool:
        """Take documents until the segment is full; True when the input ended."""
        while sum(count[2] for count in self.counts.values()) < segment_bytes:
            batch, size = list[_Item](), 0
            for item in items:
                batch.append(item)
                size += len(item.document.text)
                if size >= _BATCH_BYTES or size >= segment_bytes:
                    break
            else:
                self._write(batch)
                return True
            self._write(batch)
            report()
        return False

    def publish(self) -> list[Shard]:
        """Flush, hash and rename the segment's files."""
        shards = []
        for (split, domain), file in self.files.items():
            file.close()
            temporary = Path(file.name)
            fsync(temporary)
            final = self.out / temporary.name.removeprefix(".").removesuffix(".tmp")
            tokens, documents, text_bytes = self.counts[split, domain]
            shards.append(Shard(final.name, split, domain, tokens, documents, text_bytes, sha256(temporary)))
            temporary.replace(final)
        fsync(self.out)
        return shards

    def _write(self, batch: list[_Item]) -> None:
        ids = self.tokenizer.encode([item.document.text for item in batch])
        for item, document_ids in zip(batch, ids, strict=True):
            text = item.document.text.encode()
            where = ("valid" if _hash(text) < self.threshold else "train", item.document.domain)
            if where not in self.files:
                self.files[where] = self._open(*where)
                self.counts[where] = [0, 0, 0]
            np.asarray([*document_ids, self.tokenizer.separator], dtype=self.dtype).tofile(self.files[where])
            self.counts[where][0] += len(document_ids) + 1
            self.counts[where][1] += 1
            self.counts[where][2] += len(text)
            self.position = item.after

    def _open(self, split: str, domain: str) -> Any:
        # Names are made safe, and told apart by a hash where that changed them.
        safe = re.sub(r"[^A-Za-z0-9_-]+", "_", domain)[:60]
        safe += "" if safe == domain else f"-{hashlib.sha256(domain.encode()).hexdigest()[:6]}"
        return (self.out / f".{split}-{safe}-{self.number:05d}.bin.tmp").open("wb")


def _items(files: list[Source], request: Request, start: _Position) -> Iterator[_Item]:
    skipped = start.skipped
    for number in range(start.file, len(files)):
        for record, item in enumerate(read(files[number], request.text_field), 1):
            if number == start.file and record <= start.record:
                continue
            if isinstance(item, DataError):
                skipped += 1
                if skipped > request.max_bad:
                    raise item
                continue
            if item.text:
                yield _Item(item, _Position(number, record, skipped))


def _hash(text: bytes) -> int:
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def _validation_threshold(request: Request, files: list[Source]) -> int:
    """Documents whose hash is below this are held out; in small inputs at least one of two documents is."""
    threshold = int(request.validation * 2**64)
    if not request.validation or sum(f.path.stat().st_size for f in files) > _SCAN_BYTES:
        return threshold
    hashes = {_hash(item.document.text.encode()) for item in _items(files, request, _Position(0, 0, 0))}
    return threshold if len(hashes) < 2 else max(threshold, min(hashes) + 1)


def _tokenizer(request: Request, files: list[Source], out: Path) -> Tokenizer:
    if request.tokenizer == "bytes":
        return ByteTokenizer()
    size = bpe_size(request.tokenizer)
    if size is None:
        tokenizer = load(request.tokenizer)
    elif (out / "tokenizer.json").exists():
        return load(out)
    else:
        tokenizer = train_bpe(_bpe_sample(request, files), size)
    if tokenizer.file_name:
        write_atomic(out / tokenizer.file_name, tokenizer.content)
    return tokenizer


def _bpe_sample(request: Request, files: list[Source]) -> Iterator[str]:
    """All documents, or of a large input those whose hash falls into a sample of about 64 MB."""
    share = _BPE_SAMPLE_BYTES / max(sum(f.path.stat().st_size for f in files), 1)
    for item in _items(files, request, _Position(0, 0, 0)):
        # The hash's low bits: its high bits choose the validation split.
        if share >= 1 or _hash(item.document.text.encode()) % 2**32 < share * 2**32:
            yield item.document.text


def _load_progress(out: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    for litter in out.glob(".*.tmp"):
        litter.unlink()
    try:
        state: dict[str, Any] = json.loads((out / "progress.json").read_bytes())
    except FileNotFoundError:
        return None
    if state["key"] != key:
        raise DataError(f"{out}: was begun with other inputs or options; choose another --out or delete it")
    return state


def _key(request: Request, files: list[Source]) -> dict[str, Any]:
    """What the shards depend on: options, and name and size of every input file."""
    options = {k: v for k, v in dataclasses.asdict(request).items() if k not in ("inputs", "weights")}
    named = [[s.domain or s.folder_domain, s.path.name, s.path.stat().st_size] for s in files]
    if request.tokenizer != "bytes" and bpe_size(request.tokenizer) is None:
        options["tokenizer"] = load(request.tokenizer).fingerprint
    return {**options, "weights": request.weights, "files": named}


def _check_weights(request: Request, shards: list[Shard]) -> None:
    known = sorted({shard.domain for shard in shards})
    for domain in request.weights or {}:
        if domain not in known:
            raise DataError(f"weight of {domain!r}: no such domain in the input; it has {', '.join(known)}")


def _report(report: Report, writer: _Segment, files: list[Source], shards: list[Shard]) -> None:
    counts = [*writer.counts.values(), *([s.tokens, s.documents, s.text_bytes] for s in shards)]
    tokens, documents, text_bytes = (sum(column) for column in zip(*counts, strict=True))
    report(Progress(writer.position.file + 1 if writer.position else 0, len(files), documents, text_bytes, tokens))
