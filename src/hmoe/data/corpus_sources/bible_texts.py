"""Texts of Bibles: modules of SWORD, and the compressed file of the Bible Retrieval System."""

import html
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from hmoe.data.corpus_sources.texts import SourceText, group_parts

_DOCUMENT_LETTERS = 20_000
_SHIFT, _CLEAR = 9, 256  # width of the first codes in bits; the code that begins a new table
_WIDEST_SHIFT = 16
_HEADER_BYTES = 0x54  # of a Bible Retrieval System file, before its window size


def read_sword_text(module: Path) -> Iterator[SourceText]:
    """Give the documents of a zText module: .bzs places compressed blocks of OSIS in .bzz, a testament each."""
    for testament in ("ot", "nt"):
        places, blocks = ((module / f"{testament}.{ending}").read_bytes() for ending in ("bzs", "bzz"))
        for block, (start, size, _) in enumerate(struct.iter_unpack("<III", places), 1):
            text = _strip_osis(zlib.decompress(blocks[start : start + size]).decode("utf-8", "replace"))
            if text.strip():
                yield from group_parts(f"{testament}/{block}", re.split(r"\n\s*\n", text), _DOCUMENT_LETTERS)


def _strip_osis(markup: str) -> str:
    markup = re.sub(r"<note.*?</note>", "", markup, flags=re.DOTALL)
    markup = re.sub(r"<(chapter|/p|lg|/lg|l |div)[^>]*>", "\n", markup)
    return re.sub(r"[ \t]+", " ", html.unescape(re.sub(r"<[^>]+>", "", markup)))


def read_king_james(path: Path) -> Iterator[SourceText]:
    """Give the chapters of the Bible Retrieval System's file, whose lines are `Ge1:1 In the beginning ...`."""
    chapters: dict[str, list[str]] = {}
    for line in unpack_windows(path.read_bytes()).decode("latin-1").splitlines():
        verse = re.match(r"(\d?[A-Za-z]+\d+):\d+\s+(.*)", line)
        if verse:
            chapters.setdefault(verse[1], []).append(verse[2].strip())
    for name, verses in chapters.items():
        yield SourceText(name, " ".join(verses))


def unpack_windows(content: bytes) -> bytes:
    """Return what a Bible Retrieval System file holds: windows, each compressed as by Unix `compress`."""
    _, count = struct.unpack_from(">II", content, _HEADER_BYTES)
    starts = struct.unpack_from(f">{count}I", content, _HEADER_BYTES + 8)
    ends = [*starts[1:], len(content)]
    return b"".join(decompress_lzw(content[start:end]) for start, end in zip(starts, ends, strict=True))


def decompress_lzw(content: bytes) -> bytes:
    """Undo Unix `compress` without its three header bytes: codes of 9 to 16 bits, eight of a width at a time.

    Raises:
        ValueError: if a code names nothing.
    """
    table = [bytes([i]) for i in range(256)] + [b""]  # 256 is the clear code
    entries, previous, parts = list(table), b"", []
    width, place, begin = _SHIFT, 0, 0  # in bits
    while place + width <= 8 * len(content):
        window = int.from_bytes(content[place // 8 : place // 8 + 4], "little")
        code = window >> place % 8 & (1 << width) - 1
        place += width
        if code == _CLEAR:
            begin = place = _skip_group(place, begin, width)
            entries, previous, width = list(table), b"", _SHIFT
            continue
        if code > len(entries) or (code == len(entries) and not previous):
            raise ValueError(f"code {code} of a compressed text names nothing")
        entry = entries[code] if code < len(entries) else previous + previous[:1]
        if previous and len(entries) < 1 << _WIDEST_SHIFT:
            entries.append(previous + entry[:1])
            if len(entries) == 1 << width and width < _WIDEST_SHIFT:
                begin = place = _skip_group(place, begin, width)
                width += 1
        parts.append(entry)
        previous = entry
    return b"".join(parts)


def _skip_group(place: int, begin: int, width: int) -> int:
    """Return where the next codes begin: after a whole group of eight codes of this width."""
    return place + -(place - begin) % (8 * width)
