"""Read bytes and lines of plain and compressed files in flat memory; other content is named with a hint."""

import bz2
import codecs
import gzip
import lzma
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from hmoe.errors import DataError, make_missing_extra_error
from hmoe.storage import describe_encoding

DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)  # raised by files that end early or were changed
_READ_BYTES = 1 << 20
_HEAD_BYTES = 4096  # the beginning that tells encoding and compression
_ZSTD_BYTES = 1 << 16  # compressed bytes of a step, which may become thousands of times as many
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_COMPRESSIONS = {  # the beginning of files, by the ending of their names; zstd may begin with a frame to skip
    ".gz": rb"\x1f\x8b",
    ".xz": rb"\xfd7zXZ\x00",
    ".bz2": rb"BZh[1-9](1AY&SY|\x17rE8P\x90)",
    ".zst": rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18",
}
_MAGIC = {".gz": b"\x1f\x8b", ".xz": b"\xfd7zXZ\x00", ".bz2": b"BZh", ".zst": b"\x28\xb5\x2f\xfd"}
_SHORTEST_BYTES = 10  # compressed files are no shorter, but for an empty zstd frame, which is known before
_NO_TEXT = {
    b"PAR1\x15": "a parquet file, and its name must end so",
    b"PK\x03\x04": "a zip archive; unpack it",
}


def read_lines(path: Path) -> Iterator[bytes]:
    """Read the lines of a file, each with its end (only \\n ends a line), however long the file is.

    Raises:
        DataError: if it is in another encoding or compression than its name says.
    """
    parts: list[bytes] = []
    for chunk in read_chunks(path):
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            yield b"".join([*parts, piece, b"\n"])
            parts.clear()
        parts.append(rest)
    if last := b"".join(parts):
        yield last


def read_line_parts(path: Path, longest: int) -> Iterator[tuple[int, int, bytes]]:
    """Read (line, column, content) of every line; one longer than `longest` bytes comes in parts.

    A part ends after white space, if it has any, else between two characters. Columns count bytes from 1.

    Raises:
        DataError: as `read_lines`.
    """
    line, column, buffer = 1, 1, b""
    for chunk in read_chunks(path):
        buffer, start = buffer + chunk, 0
        while True:
            stop = buffer.find(b"\n", start, start + longest) + 1
            ended = stop > 0
            if not ended:
                if len(buffer) - start < longest:
                    break
                stop = _last_break(buffer, start, start + longest)
            yield line, column, buffer[start:stop]
            line, column = (line + 1, 1) if ended else (line, column + stop - start)
            start = stop
        buffer = buffer[start:]
    if buffer:
        yield line, column, buffer


def _last_break(buffer: bytes, start: int, stop: int) -> int:
    """Return where a part that begins at `start` ends: after white space, else between two characters."""
    if (space := max(buffer.rfind(mark, start, stop) for mark in (b" ", b"\t", b"\r"))) >= start:
        return space + 1
    end = stop
    # In UTF-8 only the first byte of a character is not 10xxxxxx, and a character has at most four.
    while end > stop - 4 and end < len(buffer) and buffer[end] & 0xC0 == 0x80:
        end -= 1
    return end


def read_chunks(path: Path) -> Iterator[bytes]:
    """Read the decompressed content of a file in pieces, without a byte order mark.

    Raises:
        DataError: as `read_lines`.
    """
    chunks, head = _decompress(path), b""
    # A frame or a member may be empty, or shorter than a byte order mark.
    while len(head) < _HEAD_BYTES and (chunk := next(chunks, b"")):
        head += chunk
    _check_beginning(path, head)
    yield head.removeprefix(BYTE_ORDER_MARK)
    yield from chunks


def decode_line(raw: bytes, path: Path, line: int, first_column: int = 1) -> str:
    """Decode a line, or a part of one that begins at `first_column`.

    Raises:
        DataError: for bytes that are not UTF-8, naming line and column.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{line}: invalid UTF-8: byte {raw[error.start]:#04x} at column {first_column + error.start}; "
            "convert other encodings, such as Latin-1: iconv -f LATIN1 -t UTF-8"
        ) from None


def _check_beginning(path: Path, head: bytes) -> None:
    if (encoding := describe_encoding(head)) is not None:
        raise DataError(f"{path}: is {encoding}, must be UTF-8; convert it: iconv -f {encoding} -t UTF-8")
    for beginning, kind in _NO_TEXT.items():
        if head.startswith(beginning):
            raise DataError(f"{path}: is {kind}")


def _decompress(path: Path) -> Iterator[bytes]:
    """Read the decompressed content of a file in pieces that are not empty."""
    compression = _detect_compression(path)
    if compression == ".zst":
        with path.open("rb") as file:
            yield from filter(None, _zstd_chunks(file))
        return
    opened: Any = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}.get(compression, open)
    with opened(path, "rb") as file:
        while chunk := file.read(_READ_BYTES):
            yield chunk


def _detect_compression(path: Path) -> str:
    """Return the ending that names a file's compression, "" if it is plain.

    The content decides, as programs that fetch files unpack some of them and keep the name.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    for ending, beginning in _COMPRESSIONS.items():
        if re.match(beginning, head, re.DOTALL):
            return ending
    ending = path.suffix.lower().replace(".zstd", ".zst")
    if ending in _MAGIC and _is_cut(head, _MAGIC[ending]):
        return ending
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return ending if ending in _COMPRESSIONS else ""  # a damaged file, which the reader of its kind names
    return ""


def _is_cut(content: bytes, magic: bytes) -> bool:
    """Return whether a short file is the beginning of a compressed one, which its reader names as damaged."""
    if not 0 < len(content) < _SHORTEST_BYTES:
        return False
    return magic.startswith(content) or content.startswith(magic)


def _zstd_chunks(file: BinaryIO) -> Iterator[bytes]:
    """Decompress zstd frames one after another.

    Raises:
        OSError: if a frame is damaged.
        EOFError: if the last one ends early, where the library's own stream reader just ends.
    """
    try:
        import zstandard  # noqa: PLC0415 - optional extra
    except ImportError:
        raise make_missing_extra_error(".zst files", "data") from None
    frame, data = None, b""
    while data or (data := file.read(_ZSTD_BYTES)):
        frame = frame or zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
        try:
            yield frame.decompress(data)
        except zstandard.ZstdError as error:
            raise OSError(f"zstd: {error}") from None
        data = frame.unused_data if frame.eof else b""
        frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("zstd frame ends early")
