"""Damaged text: named, or counted as skipped, or read as it is."""

import bz2
import gzip
import io
import json
import lzma
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from hmoe import ConfigError, DataError
from hmoe.data.prepare import PrepareRequest, prepare_data
from hmoe.data.shards import Index, open_index
from hmoe.data.tokenizer import ByteTokenizer
from tests.conftest import sentences
from tests.faults.campaign import Case, check
from tests.faults.mutations import (
    check_user_error,
    flip_bit,
    limit_memory,
    mutate_bytes,
    show_input,
)

_INPUTS = 25
_COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "gz": lambda content: gzip.compress(content, mtime=0),
    "xz": lzma.compress,
    "bz2": bz2.compress,
    "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}


def _draw_texts(rng: random.Random) -> list[str]:
    return [sentences(rng.randrange(10**9), rng.randint(1, 6)) for _ in range(rng.randint(2, 9))]


def _write_jsonl(texts: list[str]) -> bytes:
    return "".join(
        json.dumps({"text": text, "id": place}) + "\n" for place, text in enumerate(texts)
    ).encode()


def _write_parquet(texts: list[str]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": texts, "id": list(range(len(texts)))}), buffer)
    return buffer.getvalue()


def _read_texts(index: Index) -> Counter[str]:
    """Return the documents of a folder of bytes."""
    documents: Counter[str] = Counter()
    for shard in index.shards:
        ids = index.tokens(shard)
        check(len(ids) == shard.tokens, f"{shard.file} has {len(ids)} tokens, the index says {shard.tokens}")
        pieces = np.split(ids, np.flatnonzero(ids == ByteTokenizer.separator) + 1)
        documents.update(bytes(piece[:-1].tolist()).decode() for piece in pieces if len(piece))
    return documents


def _prepare(file: Path, out: Path, max_bad: int, words: str) -> tuple[Index | None, str]:
    """Prepare a file; return the verified folder, or None and the error, which names the file."""
    try:
        prepare_data(PrepareRequest([str(file)], "bytes", max_bad=max_bad, validation=0.1), out)
    except Exception as error:
        check_user_error(error, words)
        check(isinstance(error, DataError | ConfigError), f"{type(error).__name__} for {words}")
        check(file.name in str(error), f"the error does not name {file.name}: {error}; for {words}")
        return None, str(error)
    index = open_index(out)
    index.verify()
    check(
        index.skipped_documents <= max_bad,
        f"{index.skipped_documents} skipped, {max_bad} allowed, for {words}",
    )
    return index, ""


def _try_bad_lines(rng: random.Random, folder: Path) -> None:
    """Some lines of a .jsonl file are unusable: they are counted, and the others are all there."""
    texts = _draw_texts(rng)
    lines: list[bytes] = _write_jsonl(texts).splitlines(keepends=True)
    num_bad = rng.randint(1, 4)
    bad = [rng.choice(_BAD_LINES) + b"\n" for _ in range(num_bad)]
    # Not the first line, which may tell of the whole file.
    places = sorted(rng.sample(range(1, len(lines) + num_bad), num_bad))
    for place, line in zip(places, bad, strict=True):
        lines.insert(place, line)
    file = folder / "bad.jsonl"
    file.write_bytes(b"".join(lines))
    max_bad = rng.choice((0, num_bad - 1, num_bad, num_bad + 1, 1000))
    words = f"lines {places} = {show_input(bad)}, max_bad {max_bad}"
    index, error = _prepare(file, folder / "out", max_bad, words)
    if index is None:
        at = places[max_bad] + 1 if max_bad < num_bad else 0
        check(
            max_bad < num_bad and f"{file}:{at}:" in error,
            f"must name line {at}, says {error}; for {words}",
        )
        return
    check(
        max_bad >= num_bad and index.skipped_documents == num_bad,
        f"{index.skipped_documents} skipped for {words}",
    )
    check(_read_texts(index) == Counter(texts), f"other documents were lost or changed for {words}")


_BAD_LINES = (
    b"{", b"}", b"nonsense", b'{"text": }', b'{"text": "\xff"}', b'{"text": 3}', b'{"text": null}',
    b'{"text": ["a"]}', b'{"txt": "a"}',
    b"3", b'"text"', b"null", b'{"text": "\\ud800"}', b"[" * 3000, b'{"text": "a"', b"\x00",
    b'{"text": "a"} {"text": "b"}', b"[1]",
    b'{"text": {"text": "a"}}', b'{"text": "a\x01"}', b'{"id": ' + b"9" * 5000 + b"}", b"\x1b[31m",
    "{\u201ctext\u201d: 1}".encode(),
)  # fmt: skip


def _try_txt(rng: random.Random, folder: Path) -> None:
    """A text with a few bytes changed is refused, or read as it is."""
    good = "\n\n".join(_draw_texts(rng)).encode()
    kind = rng.randrange(6)
    content = (
        mutate_bytes(rng, good),
        good.replace(b" ", b"\0", rng.randint(1, 9)),
        good + rng.choice((b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80")) + good,
        good.decode().encode(rng.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig"))),
        b"x" * rng.randint(70_000, 2_000_000) + rng.choice((b"", b"\n", b"\xff", "é".encode())),
        rng.choice(
            (b"", b"\n", b"\xef\xbb\xbf", b" ", b"\0", b"PK\x03\x04", b"\x1f\x8b", b"(", rng.randbytes(99))
        ),
    )[kind]
    file = folder / rng.choice(("a.txt", "ä b.txt", "A.TXT"))
    file.write_bytes(content)
    words = f"kind {kind} of text {show_input(content)}"
    max_bad = rng.choice((0, 3))
    index, _ = _prepare(file, folder / "out", max_bad, words)
    if index is None:
        return
    try:
        text = content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError:
        check(index.skipped_documents, f"invalid UTF-8 is neither refused nor counted for {words}")
        return
    documents = _read_texts(index)
    check(
        sum(documents.values()) == 1 or len(content) > 1 << 14,
        f"{sum(documents.values())} documents of {words}",
    )
    num_bytes = sum(len(document.encode()) * count for document, count in documents.items())
    check(num_bytes == len(text.encode()), f"{num_bytes} bytes of {len(text.encode())} are there for {words}")


def _try_archive(rng: random.Random, folder: Path) -> None:
    """A compressed file or a table that was cut or changed is refused, unless the change changes no document."""
    texts = _draw_texts(rng)
    if rng.random() < 0.3:
        good, name = _write_parquet(texts), "a.parquet"
    else:
        ending = rng.choice(list(_COMPRESSED))
        good, name = _COMPRESSED[ending](_write_jsonl(texts)), f"a.jsonl.{ending}"
    kind = rng.choice(("cut", "flip", "flip", "changed", "tail"))
    if kind == "cut" and rng.random() < 0.5:
        name = name.replace("jsonl", "txt")
    if kind == "cut":
        length = rng.choice((rng.randrange(len(good)), rng.randrange(12), len(good) - rng.randint(1, 12)))
        bad, words = good[:length], f"cut to {length} of {len(good)} bytes"
    elif kind == "flip":
        bad, words = flip_bit(rng, good)
    elif kind == "changed":
        bad, words = mutate_bytes(rng, good), "bytes changed"
    else:
        bad, words = good + rng.randbytes(rng.randint(1, 30)), "followed by other bytes"
    file = folder / name
    file.write_bytes(bad)
    words = f"{name} {words}: {show_input(bad)}"
    index, _ = _prepare(file, folder / "out", rng.choice((0, 0, 5)), words)
    if index is None or name.endswith("parquet"):  # a table has no checksum of its text
        return
    check(kind != "cut", f"a folder is made of {words}")
    check(_read_texts(index) == Counter(texts), f"documents were lost or changed for {words}")


def prepare_bad_text(case: Case) -> int:
    """Prepare twenty-five damaged files."""
    rng = case.draw()
    limit_memory()
    for number in range(_INPUTS):
        folder = case.folder / str(number)
        folder.mkdir()
        rng.choice((_try_bad_lines, _try_txt, _try_archive))(rng, folder)
        shutil.rmtree(folder)
    return _INPUTS
