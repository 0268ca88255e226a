"""Documents from txt, jsonl, jsonl.{gz,xz,zst} and parquet files, in a fixed order and in flat memory."""

import gzip
import json
import lzma
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from hmoe.errors import ConfigError, DataError, missing_extra

_SUFFIX = re.compile(r"\.(txt|jsonl|json|parquet)(\.(gz|xz|zst))?$")
_READ_BYTES = 1 << 20
_TXT_DOCUMENT_BYTES = 1 << 14  # a longer .txt file is cut at empty lines into documents of about this size
_TEXT_FIELDS = ("text", "raw_content", "content")  # RedPajama 1 and 2, code sets
_FIELD = re.compile(r"\{([^{}]+)\}")  # in a template of several fields
_DOMAIN_FIELDS = ("domain", "red_pajama_subset", "redpajama_set_name")  # also looked up in `meta`


class Source(NamedTuple):
    """One input file; `domain` is None where records or folders name it."""

    path: Path
    domain: str | None
    folder_domain: str


class Document(NamedTuple):
    """One text with the domain it belongs to."""

    text: str
    domain: str


def sources(inputs: list[str], leave_out: Path | None = None) -> list[Source]:
    """Files of `PATH` or `domain=PATH` inputs; folders are walked in sorted order, hidden files and `leave_out` passed over.

    Without a name the domain is the record's own (`domain`, RedPajama's `red_pajama_subset`), else the first folder
    below the input, else the input's own name.

    Raises:
        DataError: if there is nothing to read.
    """
    found: list[Source] = []
    for item in inputs:
        name, equals, rest = item.partition("=")
        domain, root = (name, Path(rest)) if equals and not Path(item).exists() else (None, Path(item))
        if not root.exists() or (equals and not rest):
            raise DataError(f"{root}: no such file or folder")
        if root.is_file():
            found.append(Source(root, domain, _stem(root)))
            continue
        files = sorted(p for p in root.rglob("*") if _wanted(p, root, leave_out))
        if not files:
            raise DataError(f"{root}: holds no .txt, .jsonl, .json or .parquet file (also .gz, .xz, .zst)")
        for path in files:
            parts = path.relative_to(root).parts
            found.append(Source(path, domain, parts[0] if len(parts) > 1 else root.resolve().name))
    return found


def _wanted(path: Path, root: Path, leave_out: Path | None) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    own = leave_out is not None and leave_out.resolve() in path.resolve().parents
    return path.is_file() and bool(_SUFFIX.search(path.name)) and not hidden and not own


def read(source: Source, text_field: str | None) -> Iterator[Document | DataError]:
    """Documents of one file; an unusable one is an error object that names file and line.

    Args:
        source: the file.
        text_field: field of a record that is its text, or a template such as "{question}\\n{response}"; None: text, raw_content or
            content.

    Raises:
        DataError: if the file ends before its end or is damaged.
    """
    path = source.path
    match = _SUFFIX.search(path.name)
    if match is None:
        yield DataError(f"{path}: unknown kind; must end in .txt, .jsonl, .json or .parquet (also .gz, .xz, .zst)")
        return
    if path.stat().st_size == 0:
        yield DataError(f"{path}: empty file")
        return
    records = {"txt": _read_txt, "parquet": _read_parquet}.get(match[1], _read_jsonl)
    text_field = "text" if match[1] == "txt" else text_field  # it has no fields
    line = 0
    try:
        for line, record in records(path, text_field):
            yield record if isinstance(record, DataError) else _document(record, source, text_field, line)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        # Not one bad document but all that follow it, so it is not skipped and counted.
        raise DataError(f"{path}:{line + 1}: cannot be read on, truncated or damaged: {error}") from None


def _document(record: Any, source: Source, text_field: str | None, line: int) -> Document | DataError:
    where = f"{source.path}:{line}"
    if not isinstance(record, dict):
        return DataError(f"{where}: a record must be a JSON object, is {type(record).__name__}")
    field = text_field or next((name for name in _TEXT_FIELDS if name in record), " or ".join(_TEXT_FIELDS))
    for name in _fields(field):
        if name not in record:
            return DataError(f"{where}: no field {name}; has {', '.join(record)[:200]}")
        if not isinstance(record[name], str):
            return DataError(f"{where}: field {name} must be text, is {type(record[name]).__name__}")
    templates = _FIELD.search(field) is not None
    text = _FIELD.sub(lambda found: record[found[1]], field.replace("\\n", "\n")) if templates else record[field]
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return DataError(f"{where}: field {field} is not valid Unicode: {error.reason}")
    meta = record.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    names = (table.get(name) for table in (record, meta) for name in _DOMAIN_FIELDS)
    own = next((name for name in names if isinstance(name, str) and name), None)
    return Document(text, source.domain or own or source.folder_domain)


def _fields(text_field: str) -> list[str]:
    """Of a template, or the one field.

    Raises:
        ConfigError: for a brace that is not part of a field.
    """
    rest = _FIELD.sub("", text_field)
    if "{" in rest or "}" in rest:
        raise ConfigError(f"text field {text_field!r}: a brace that is not part of a {{field}}")
    return _FIELD.findall(text_field) or [text_field]


def _read_txt(path: Path, text_field: str | None) -> Iterator[tuple[int, Any]]:
    start, lines, size = 1, list[str](), 0
    number = 0
    for number, raw in enumerate(_lines(path), 1):
        try:
            line = raw.decode()
        except UnicodeDecodeError as error:
            yield (
                number,
                DataError(f"{path}:{number}: invalid UTF-8: byte {raw[error.start]:#04x} at column {error.start + 1}"),
            )
            continue
        lines.append(line)
        size += len(raw)
        if (size >= _TXT_DOCUMENT_BYTES and not line.strip()) or size >= 4 * _TXT_DOCUMENT_BYTES:
            yield start, {text_field or "text": "".join(lines)}
            start, lines, size = number + 1, [], 0
    if lines:
        yield start, {text_field or "text": "".join(lines)}


def _read_jsonl(path: Path, text_field: str | None) -> Iterator[tuple[int, Any]]:
    for number, raw in enumerate(_lines(path), 1):
        if not raw.strip():
            continue
        try:
            yield number, json.loads(raw.decode())
        except UnicodeDecodeError as error:
            yield (
                number,
                DataError(f"{path}:{number}: invalid UTF-8: byte {raw[error.start]:#04x} at column {error.start + 1}"),
            )
        except (ValueError, RecursionError) as error:
            yield number, DataError(f"{path}:{number}: not JSON: {error}")


def _read_parquet(path: Path, text_field: str | None) -> Iterator[tuple[int, Any]]:
    try:
        import pyarrow  # noqa: PLC0415 - optional extra
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError:
        raise missing_extra("parquet files", "data") from None
    try:
        file = parquet.ParquetFile(path)
        wanted = {*_fields(text_field or ""), "meta", *_TEXT_FIELDS, *_DOMAIN_FIELDS}
        columns = [name for name in file.schema_arrow.names if name in wanted]
        row = 0
        for batch in file.iter_batches(batch_size=1024, columns=columns or None):
            for record in batch.to_pylist():
                row += 1
                yield row, record
    except pyarrow.ArrowException as error:
        raise OSError(f"parquet: {' '.join(str(error).split())}") from None


def _lines(path: Path) -> Iterator[bytes]:
    """Lines with their ends (only \\n ends a line), of a plain or compressed file, however long the file is."""
    parts: list[bytes] = []
    for chunk in _chunks(path):
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            yield b"".join([*parts, piece, b"\n"])
            parts.clear()
        parts.append(rest)
    if last := b"".join(parts):
        yield last


def _chunks(path: Path) -> Iterator[bytes]:
    """Content in pieces, without a byte order mark."""
    chunks = _raw_chunks(path)
    yield next(chunks, b"").removeprefix(b"\xef\xbb\xbf")
    yield from chunks


def _raw_chunks(path: Path) -> Iterator[bytes]:
    if path.suffix == ".zst":
        with path.open("rb") as file:
            yield from _zstd_chunks(file)
        return
    opened: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with opened(path, "rb") as file:
        while chunk := file.read(_READ_BYTES):
            yield chunk


def _zstd_chunks(file: BinaryIO) -> Iterator[bytes]:
    """Frames one after another; the library's own stream reader ends silently in a truncated frame, this does not."""
    try:
        import zstandard  # noqa: PLC0415 - optional extra
    except ImportError:
        raise missing_extra(".zst files", "data") from None
    frame, data = None, b""
    while data or (data := file.read(_READ_BYTES)):
        frame = frame or zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
        try:
            yield frame.decompress(data)
        except zstandard.ZstdError as error:
            raise OSError(f"zstd: {error}") from None
        data = frame.unused_data if frame.eof else b""
        frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("zstd frame ends early")


def _stem(path: Path) -> str:
    return _SUFFIX.sub("", os.path.basename(path)) or path.name
