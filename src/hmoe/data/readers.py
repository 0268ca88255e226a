"""Read documents of txt, jsonl and parquet files, plain or compressed, in a fixed order and flat memory."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hmoe.data.inputs import KINDS, SUFFIX, InputFile
from hmoe.data.lines import BYTE_ORDER_MARK, DAMAGED, decode_line, read_line_parts, read_lines
from hmoe.data.parquet_rows import read_parquet_rows
from hmoe.errors import ConfigError, DataError

_TXT_DOCUMENT_BYTES = 1 << 14  # a longer .txt file is cut at empty lines into documents of about this size
_LONGEST_TXT_BYTES = 4 * _TXT_DOCUMENT_BYTES  # and after this size at the end of a line, or at white space
_TEXT_FIELDS = ("text", "raw_content", "content")  # RedPajama 1 and 2, code sets
_FIELD = re.compile(r"\{([^{}]+)\}")  # in a template of several fields
_DOMAIN_FIELDS = ("domain", "red_pajama_subset", "redpajama_set_name")
_DOMAIN_PLACES = (*_DOMAIN_FIELDS, *(f"meta.{name}" for name in _DOMAIN_FIELDS))
_ABSENT = object()


class Document(NamedTuple):
    """One text with the domain that it belongs to."""

    text: str
    domain: str


def read_documents(source: InputFile, text_field: str | None) -> Iterator[Document | DataError]:
    """Read the documents of one file; in place of an unusable one comes an error that names file and line.

    A file without any record gives one document without text, so that it is counted.

    Args:
        source: the file.
        text_field: field of a record that is its text, doc.text for one below another, or a template such as
            "{question}\\n{response}"; None: text, raw_content or content.

    Raises:
        DataError: if the file ends before its end or is damaged, or is not what its name says.
        ConfigError: for an empty text field.
    """
    path = source.path
    if text_field == "":
        raise ConfigError(
            "text_field is empty, must name a field; leave it out for text, raw_content or content",
            argument="text_field",
        )
    match = SUFFIX.search(path.name)
    if match is None:
        raise DataError(f"{path}: unknown kind; must end in {KINDS}")
    try:
        if path.stat().st_size == 0:
            yield DataError(f"{path}: empty file")
            return
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    kind = match[1].lower()
    text_field = "text" if kind == "txt" else text_field  # plain text has no fields
    line = 0
    try:
        for line, record in _read_records(source, kind, text_field):
            yield (
                record if isinstance(record, DataError) else _make_document(record, source, text_field, line)
            )
    except DAMAGED as error:
        # Not one bad document but all that follow it, so it is not skipped and counted.
        raise DataError(f"{path}:{line + 1}: cannot be read on, truncated or damaged: {error}") from None
    if line == 0:
        yield Document("", source.domain or source.folder_domain)


def _read_records(source: InputFile, kind: str, text_field: str | None) -> Iterator[tuple[int, Any]]:
    """Read (line or row, record or error) of a file."""
    if kind == "txt":
        return _read_txt(source.path)
    if kind != "parquet":
        return _read_jsonl(source.path)
    names = _list_fields(text_field) if text_field else []
    return read_parquet_rows(source.path, names, _TEXT_FIELDS, () if source.domain else _DOMAIN_PLACES)


def _make_document(record: Any, source: InputFile, text_field: str | None, line: int) -> Document | DataError:
    where = f"{source.path}:{line}"
    if not isinstance(record, dict):
        return DataError(f"{where}: a record must be a JSON object, is {type(record).__name__}")
    field = text_field or next((name for name in _TEXT_FIELDS if name in record), " or ".join(_TEXT_FIELDS))
    values: dict[str, str] = {}
    for name in _list_fields(field):
        value = _find_field(record, name)
        if value is _ABSENT:
            return DataError(f"{where}: no field {name}; has {', '.join(record)[:200]}")
        if not isinstance(value, str):
            return DataError(f"{where}: field {name} must be text, is {type(value).__name__}")
        values[name] = value
    is_template = _FIELD.search(field) is not None
    text = (
        _FIELD.sub(lambda part: values[part[1]], field.replace("\\n", "\n")) if is_template else values[field]
    )
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON may hold half of a surrogate pair
        return DataError(f"{where}: field {field} is not valid Unicode: {error.reason}")
    return Document(text, source.domain or _own_domain(record) or source.folder_domain)


def _find_field(record: dict[str, Any], name: str) -> Any:
    """Find the field of that whole name, else below others, as doc.text is below doc; _ABSENT if neither."""
    if name in record:
        return record[name]
    for dot in (place for place, letter in enumerate(name) if letter == "."):
        below = record.get(name[:dot])
        value = _find_field(below, name[dot + 1 :]) if isinstance(below, dict) else _ABSENT
        if value is not _ABSENT:
            return value
    return _ABSENT


def _own_domain(record: dict[str, Any]) -> str | None:
    names = (_find_field(record, place) for place in _DOMAIN_PLACES)
    return next((name for name in names if isinstance(name, str) and name), None)


def _list_fields(text_field: str) -> list[str]:
    """List the fields of a template, or the one field that is no template.

    Raises:
        ConfigError: for a brace that is not part of a field.
    """
    rest = _FIELD.sub("", text_field)
    if "{" in rest or "}" in rest:
        raise ConfigError(
            f"text_field = {text_field!r}: a brace that is not part of a {{field}}", argument="text_field"
        )
    return _FIELD.findall(text_field) or [text_field]


def _read_txt(path: Path) -> Iterator[tuple[int, Any]]:
    """Read (first line, record or error) of a text file, which is cut into documents."""
    start, parts, size = 1, list[str](), 0
    for line, column, raw in read_line_parts(path, _LONGEST_TXT_BYTES):
        try:
            part = decode_line(raw, path, line, column)
        except DataError as error:
            yield line, error
            continue
        parts.append(part)
        size += len(raw)
        is_whole = raw.endswith(b"\n")  # else it is a part of a long line, or the file's last line
        if (size >= _TXT_DOCUMENT_BYTES and not part.strip()) or size >= _LONGEST_TXT_BYTES or not is_whole:
            yield start, {"text": "".join(parts)}
            start, parts, size = line + 1 if is_whole else line, [], 0
    if parts:
        yield start, {"text": "".join(parts)}


def _read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    """Read (line, record or error) of every line that is not empty."""
    line, is_first = 0, True
    for raw in read_lines(path):
        line += 1
        if not raw.strip():
            continue
        record = _parse_line(raw, path, line, is_first)
        is_first = False
        del raw  # a record may be large, and is not to be held twice while it is encoded
        yield line, record


def _parse_line(raw: bytes, path: Path, line: int, is_first: bool) -> Any:
    """Parse a line; return its JSON value, or the DataError that it is unusable.

    Raises:
        DataError: if the first line shows that the whole file is one JSON value.
    """
    try:
        # Files that `cat` joined have a byte order mark in their middle.
        record = json.loads(decode_line(raw.removeprefix(BYTE_ORDER_MARK), path, line))
    except DataError as error:
        return error
    except (ValueError, RecursionError) as error:
        if is_first and (raw.lstrip()[:1] == b"[" or raw.strip() == b"{") and len(raw) < 1 << 16:
            kind = "array" if raw.lstrip()[:1] == b"[" else "object"
            raise DataError(
                f"{path}: is one JSON {kind} over several lines; write one object a line: "
                f"jq -c '{'.[]' if kind == 'array' else '.'}'"
            ) from None
        return DataError(f"{path}:{line}: not JSON: {error}")
    if is_first and isinstance(record, list) and record and isinstance(record[0], dict):
        raise DataError(
            f"{path}: is one JSON array of {len(record)} objects; write one object a line: jq -c '.[]'"
        )
    return record
