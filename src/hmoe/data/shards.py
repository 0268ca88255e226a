"""Read and write prepared data: `index.json` and shards of little-endian token ids, read by memory maps."""

import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hmoe.data.losses import EncodingLosses
from hmoe.errors import DataError
from hmoe.storage import hash_file, write_atomic

_FORMAT = 1
_DTYPES = ("<u2", "<u4")
_LARGEST_WEIGHT = 1e12
LOSS_KINDS: dict[str, Any] = {
    "texts": int,
    "lost": int,
    "changed": int,
    "unknown": int,
    "example": list | tuple | None,
}
_FIELDS = (
    "dtype",
    "tokenizer_fingerprint",
    "vocab_size",
    "separator",
    "weights",
    "skipped_documents",
    "request",
)

# How the shards of a pool are cut into sequences.
ACROSS = (
    "across shards"  # a pool is one stream: only its last tokens, fewer than a sequence, are out of reach
)
WITHIN = "within shards"  # windows end with their shard: in runs begun before ACROSS, and the embedded corpus
PACKINGS = (ACROSS, WITHIN)


@dataclass(frozen=True)
class Shard:
    """One file of tokens of one split and domain.

    Attributes:
        file: its name in the data folder.
        split: train or valid.
        domain: the domain of its documents.
        tokens: number of ids, a separator after each document included.
        documents: number of documents.
        text_bytes: UTF-8 bytes of the documents.
        sha256: SHA-256 of the file.
    """

    file: str
    split: str
    domain: str
    tokens: int
    documents: int
    text_bytes: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """What a data folder holds.

    Attributes:
        folder: the data folder.
        dtype: numpy's name of the type of the token ids.
        tokenizer_fingerprint: fingerprint of the tokenizer that made the shards.
        vocab_size: number above every token id.
        separator: id after every document.
        weights: sampling weight per domain; None samples in proportion to size.
        skipped_documents: number of unusable documents, which `max_bad` allowed.
        request: what was asked for, see `hmoe.data.prepare`.
        shards: the files of tokens, in the order in which they are read.
        fingerprint: changes when any token, weight or the tokenizer does.
        empty_documents: number of documents without text.
        packing: how new runs cut the shards into sequences (see `hmoe.data.packing`).
        begin: tokens that every document begins with, such as LLaMA's <s>; none in data of earlier versions.
        losses: what the tokenizer lost of the text, see `hmoe.data.losses`; None: nothing that was noticed.
    """

    folder: Path
    dtype: str
    tokenizer_fingerprint: str
    vocab_size: int
    separator: int
    weights: dict[str, float] | None
    skipped_documents: int
    request: dict[str, Any]
    shards: tuple[Shard, ...]
    fingerprint: str
    empty_documents: int = 0
    packing: str = ACROSS
    begin: tuple[int, ...] = ()
    losses: EncodingLosses | None = None

    def of(self, split: str, domain: str | None = None) -> list[Shard]:
        """Return the shards of a split, or of one domain of it, in order."""
        return [shard for shard in self.shards if shard.split == split and domain in (None, shard.domain)]

    def tokens_of(self, split: str) -> int:
        """Return the number of token ids of a split."""
        return sum(shard.tokens for shard in self.of(split))

    def describe_split(self) -> str:
        """Return a warning if more is held out than trained on, else ""."""
        train, valid = self.tokens_of("train"), self.tokens_of("valid")
        if valid <= train:
            return ""
        return (
            f"more is held out ({valid:,} tokens) than is left to train on ({train:,}): documents are held out whole, "
            "and here few are long; prepare again with another share for validation, or with the long documents cut"
        )

    def verify(self, share: tuple[int, int] = (0, 1)) -> None:
        """Check every shard's SHA-256, and that its tokens are of the vocabulary.

        Args:
            share: (rank, size) of a process whose others check the rest; each checks every shard of its own.

        Raises:
            DataError: naming the first shard that changed, or holds another token.
        """
        rank, size = share
        for shard in self.shards[rank::size]:
            file = self.folder / shard.file
            if hash_file(file) != shard.sha256:
                raise DataError(
                    f"{file}: SHA-256 differs from index.json; delete {self.folder} and prepare again"
                )
            largest = int(self.tokens(shard).max()) if shard.tokens else 0
            if largest >= self.vocab_size:
                raise DataError(
                    f"{file}: holds token {largest}, index.json says that all are below {self.vocab_size}; "
                    f"delete {self.folder} and prepare again"
                )

    def tokens(self, shard: Shard) -> npt.NDArray[np.unsignedinteger[Any]]:
        """Return the token ids of a shard, memory-mapped."""
        return _map_file(str(self.folder / shard.file), self.dtype, shard.sha256)


@functools.lru_cache(maxsize=256)  # each map holds a file handle
def _map_file(path: str, dtype: str, _sha256: str) -> npt.NDArray[np.unsignedinteger[Any]]:
    # By content, too: a path leads elsewhere when its folder was made anew, or from another working directory.
    return np.memmap(path, dtype=dtype, mode="r")


def choose_token_dtype(vocab_size: int) -> str:
    """Return the smallest little-endian unsigned type that holds all ids below `vocab_size`."""
    return _DTYPES[vocab_size > 1 << 16]


def write_index(folder: Path, fields: dict[str, Any], shards: list[Shard]) -> None:
    """Write index.json, with which a data folder is complete."""
    domains: dict[str, dict[str, int]] = {}
    for shard in shards:
        counts = domains.setdefault(shard.domain, {"documents": 0, "text_bytes": 0, "tokens": 0})
        for key in counts:
            counts[key] += getattr(shard, key)
    tree = {"format": _FORMAT, **fields, "domains": domains, "shards": [asdict(shard) for shard in shards]}
    write_atomic(folder / "index.json", (json.dumps(tree, indent=1) + "\n").encode())


def open_index(folder: Path) -> Index:
    """Open a data folder and check the sizes of its files; `Index.verify` checks their contents.

    Raises:
        DataError: if it is not a complete data folder or a shard has another size than the index says.
    """
    path = folder / "index.json"
    try:
        content = path.read_bytes()
    except OSError:
        raise DataError(f"{folder}: no index.json; make a data folder with `hmoe data prepare`") from None
    try:
        tree = json.loads(content)
        if tree["format"] != _FORMAT:
            raise DataError(
                f"{path}: format {tree['format']}, this version reads {_FORMAT}; delete {folder} and prepare again"
            )
        check_kinds(tree, {"format": int, "shards": list})
        shards = tuple(Shard(**shard) for shard in tree["shards"])
        fields = {name: tree[name] for name in _FIELDS}
        _check_values(fields, shards)
        begin = tuple(tree.get("begin", ()))
        check_token_ids(begin, fields["vocab_size"])
        losses = EncodingLosses(**tree["losses"]) if "losses" in tree else None
        if losses is not None:
            check_kinds(vars(losses), LOSS_KINDS)
        check_kinds({"empty_documents": tree.get("empty_documents", 0)}, {"empty_documents": int})
        width = np.dtype(fields["dtype"]).itemsize
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise DataError(f"{path}: damaged: {reason}; delete {folder} and prepare again") from None
    _check_sizes(folder, shards, width)
    return Index(
        folder=folder,
        shards=shards,
        fingerprint=_hash_content(fields | ({"begin": list(begin)} if begin else {}), tree["shards"]),
        empty_documents=tree.get("empty_documents", 0),  # not counted by earlier versions
        begin=begin,
        losses=losses,
        **fields,
    )


def _check_values(fields: dict[str, Any], shards: tuple[Shard, ...]) -> None:
    """Raise TypeError for a value of a kind, or ValueError for one out of the range, that no index has."""
    kinds: dict[str, Any] = {
        "dtype": str, "tokenizer_fingerprint": str, "vocab_size": int, "separator": int,
        "weights": dict | None, "skipped_documents": int, "request": dict,
    }  # fmt: skip
    check_kinds(fields, kinds)
    weights = fields["weights"]
    if weights is not None:
        check_kinds(weights, dict.fromkeys(weights, int | float))
        if not all(0 <= weight <= _LARGEST_WEIGHT for weight in weights.values()) or not any(
            weights.values()
        ):
            raise ValueError(f"weights must be from 0 to {_LARGEST_WEIGHT:g}, not all 0")
    if fields["dtype"] not in _DTYPES:
        raise ValueError(f"dtype = {fields['dtype']!r:.60}, must be one of {', '.join(_DTYPES)}")
    if not 0 < fields["vocab_size"] <= 1 << 32:
        raise ValueError(f"vocab_size = {fields['vocab_size']!r:.60}, must be from 1 to {1 << 32}")
    check_token_ids([fields["separator"]], fields["vocab_size"])
    check_shards(shards)


def check_shards(shards: Sequence[Shard]) -> None:
    """Raise TypeError or ValueError for a shard that nobody wrote so."""
    for shard in shards:
        check_kinds(vars(shard), Shard.__annotations__)
        # A name of the folder's own, which no system refuses as too long.
        if Path(shard.file).name != shard.file or "\0" in shard.file or len(os.fsencode(shard.file)) > 255:
            raise ValueError(f"file = {shard.file!r:.60}, must be the name of a file in the folder")


def check_token_ids(ids: Sequence[Any], vocab_size: int) -> None:
    """Raise ValueError for an id that is no token's."""
    for each in ids:
        if type(each) is not int or not 0 <= each < vocab_size:
            raise ValueError(f"{each!r:.60} is no token below {vocab_size}")


def check_kinds(values: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Raise TypeError for a value that is not of its kind; true and false are no numbers."""
    for name, kind in kinds.items():
        value = values[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TypeError(f"{name!r:.60} = {value!r:.60}, must be {getattr(kind, '__name__', kind)}")


def _check_sizes(folder: Path, shards: tuple[Shard, ...], width: int) -> None:
    """Raise DataError for a shard that is missing, or has not `width` bytes for each of its tokens."""
    for shard in shards:
        file = folder / shard.file
        size = file.stat().st_size if file.is_file() else -1
        if size != shard.tokens * width:
            state = "missing" if size < 0 else f"{size} bytes"
            raise DataError(
                f"{file}: {state}, index.json says {shard.tokens * width} bytes; delete {folder} and prepare again"
            )


def _hash_content(fields: dict[str, Any], shards: list[dict[str, Any]]) -> str:
    """Hash what training depends on, not how it was asked for."""
    content = {name: value for name, value in fields.items() if name not in ("request", "skipped_documents")}
    return hashlib.sha256(json.dumps([content, shards], sort_keys=True).encode()).hexdigest()
