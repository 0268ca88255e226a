"""Read character vectors of an R package's lazy-load database: Rdata.rdx, the index, and Rdata.rdb, the values.

The format is R's serialisation in XDR (R Internals, 1.8), of which data sets use a small part.
"""

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

_NULLS = (254, 253, 242, 241, 252, 251, 247)  # NULL, environments and markers that hold nothing
_REFERENCE = 255
_SYMBOL, _LETTERS = 1, 9
_PAIRS = (2, 5, 6)  # pairlists, promises and calls
_LISTS, _STRINGS = (19, 20), 16
_INTEGERS = (10, 13)
_HAS_ATTRIBUTES, _HAS_TAG = 0x200, 0x400


class _Reader:
    """Reads one serialised value; lists with names become dictionaries, strings Python's."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._place = 2  # after "X\n"
        self._symbols: list[Any] = []

    def read(self) -> Any:
        version, _, _ = (self._read_integer() for _ in range(3))
        if version == 3:  # names its encoding
            size = self._read_integer()
            self._place += size
        return self._read_item()

    def _read_integer(self) -> int:
        (value,) = struct.unpack_from(">i", self._content, self._place)
        self._place += 4
        return int(value)

    def _read_item(self) -> Any:
        flags = self._read_integer()
        kind = flags & 255
        if kind in _NULLS:
            return None
        if kind == _REFERENCE:
            return self._symbols[((flags >> 8) or self._read_integer()) - 1]
        if kind == _SYMBOL:
            self._symbols.append(self._read_item())
            return self._symbols[-1]
        if kind == _LETTERS:
            return self._read_letters()
        if kind in _PAIRS:
            return self._read_pairs(flags)
        return self._read_vector(kind, bool(flags & _HAS_ATTRIBUTES))

    def _read_letters(self) -> str | None:
        size = self._read_integer()
        if size < 0:  # NA
            return None
        self._place += size
        return self._content[self._place - size : self._place].decode("utf-8", "replace")

    def _read_pairs(self, flags: int) -> dict[Any, Any]:
        pairs = {}
        while flags & 255 in _PAIRS:
            if flags & _HAS_ATTRIBUTES:
                self._read_item()
            tag = self._read_item() if flags & _HAS_TAG else None
            pairs[tag] = self._read_item()
            flags = self._read_integer()
        self._place -= 4  # what ends the list is an item itself
        self._read_item()
        return pairs

    def _read_vector(self, kind: int, has_attributes: bool) -> Any:
        length = self._read_integer()
        if kind in (*_LISTS, _STRINGS):
            values = [self._read_item() for _ in range(length)]
        elif kind in _INTEGERS:
            values = list(struct.unpack_from(f">{length}i", self._content, self._place))
            self._place += 4 * length
        else:
            raise ValueError(f"R data of kind {kind} is not read")
        names = (self._read_item() or {}).get("names") if has_attributes else None
        return dict(zip(names, values, strict=True)) if names and kind in _LISTS else values


def read_character_vectors(folder: Path) -> dict[str, list[str]]:
    """Return the vectors of a folder's database by their names, in sorted order.

    Raises:
        ValueError: for values of other kinds.
    """
    places = _Reader(gzip.decompress((folder / "Rdata.rdx").read_bytes())).read()["variables"]
    values = (folder / "Rdata.rdb").read_bytes()
    return {  # a value has its size in four bytes before it
        name: _Reader(zlib.decompress(values[start + 4 : start + size])).read()
        for name, (start, size) in sorted(places.items())
    }
