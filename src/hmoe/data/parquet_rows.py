"""Rows of parquet files: only the columns that are needed, and a value that Python cannot hold costs its row alone."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hmoe.errors import DataError, missing_extra

_BATCH_ROWS = 1024
_BATCH_BYTES = 16 << 20
_BUFFER_BYTES = 1 << 20

Row = tuple[int, dict[str, Any] | DataError]


class _Column(NamedTuple):
    """A column of text: the record's key for it, and the names that lead to it, several if it is below others."""

    key: str
    place: tuple[str, ...]


def read_rows(path: Path, names: Sequence[str], choices: Sequence[str], extras: Sequence[str]) -> Iterator[Row]:
    """(number, record) of every row. A record holds text fields under their own names, "doc.text" for a nested one.

    Args:
        path: the file.
        names: fields that a row must have; none: the first of `choices` that the file has.
        choices: see `names`.
        extras: fields that a row may have; they are passed over where the file has no text there.

    Raises:
        OSError: if the file is damaged.
        DataError: if it has two columns of one name.
    """
    try:
        import pyarrow  # noqa: PLC0415 - optional extra
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError:
        raise missing_extra("parquet files", "data") from None
    try:
        file = parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES)
        schema = file.schema_arrow
        names = names or [name for name in choices if name in schema.names][:1] or [" or ".join(choices)]
        places = {name: _place(schema, name) for name in names}
        if problem := _problem(path, schema, places):
            yield from ((row, DataError(f"{path}:{row}: {problem}")) for row in range(1, file.metadata.num_rows + 1))
            return
        places |= {name: _place(schema, name) for name in extras}
        columns = [_Column(name, place) for name, place in places.items() if place and _is_text(_type(schema, place))]
        row = 0
        paths = [".".join(column.place) for column in columns]
        for batch in file.iter_batches(batch_size=_batch_rows(file.metadata, paths), columns=paths):
            values = {column.key: _values(_array(batch, column.place)) for column in columns}
            for cells in zip(*values.values(), strict=True):
                row += 1
                yield row, _record(path, row, dict(zip(values, cells, strict=True)))
    except pyarrow.ArrowException as error:
        raise OSError(f"parquet: {' '.join(str(error).split())}") from None


def _place(schema: Any, name: str) -> tuple[str, ...] | None:
    """Where a field is: a column of that whole name, else below one, as doc.text is below doc; None if nowhere."""
    if name in schema.names:
        return (name,)
    for dot, letter in enumerate(name):
        if letter != "." or name[:dot] not in schema.names:
            continue
        below = _Children(_storage(schema.field(schema.names.index(name[:dot])).type))
        if (rest := _place(below, name[dot + 1 :])) is not None:
            return (name[:dot], *rest)
    return None


class _Children:
    """The fields of a struct type, as a schema has them; none of another type."""

    def __init__(self, kind: Any) -> None:
        count = kind.num_fields if str(kind).startswith("struct<") else 0
        self._fields = [kind.field(number) for number in range(count)]
        self.names = [field.name for field in self._fields]

    def field(self, number: int) -> Any:
        """A child by its number."""
        return self._fields[number]


def _type(schema: Any, place: tuple[str, ...]) -> Any:
    kind = _storage(schema.field(schema.names.index(place[0])).type)
    return kind if len(place) == 1 else _type(_Children(kind), place[1:])


def _storage(kind: Any) -> Any:
    """What an extension type is stored as."""
    return getattr(kind, "storage_type", kind)


def _is_text(kind: Any) -> bool:
    kind = getattr(kind, "value_type", kind) if str(kind).startswith("dictionary<") else kind
    return str(kind) in ("string", "large_string", "string_view")


def _problem(path: Path, schema: Any, places: dict[str, tuple[str, ...] | None]) -> str:
    """Why no row of the file can have its text, or ""."""
    for name, place in places.items():
        if place is None:
            return f"no field {name}; has {', '.join(schema.names)[:200]}"
        if schema.names.count(place[0]) > 1:
            raise DataError(f"{path}: has two columns {place[0]}")
        if not _is_text(_type(schema, place)):
            return f"field {name} must be text, is {str(_type(schema, place))[:80]}"
    return ""


def _batch_rows(metadata: Any, paths: list[str]) -> int:
    """Rows that are read at once: fewer where texts are long."""
    mean_bytes = 1.0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = (group.column(i) for i in range(group.num_columns))
        wanted = sum(column.total_uncompressed_size for column in columns if column.path_in_schema in paths)
        mean_bytes = max(mean_bytes, wanted / max(group.num_rows, 1))
    return int(max(1, min(_BATCH_ROWS, _BATCH_BYTES // mean_bytes)))


def _array(batch: Any, place: tuple[str, ...]) -> Any:
    from pyarrow import compute  # noqa: PLC0415 - optional extra

    array = batch.column(batch.schema.names.index(place[0]))
    for name in place[1:]:
        array = getattr(array, "storage", array)
        array = compute.struct_field(array, [_Children(array.type).names.index(name)])
    return getattr(array, "storage", array)


def _values(array: Any) -> list[Any]:
    """Values, with an error in place of one that Python cannot hold."""
    try:
        values: list[Any] = array.to_pylist()
    except ValueError:  # invalid UTF-8; Arrow's own errors of values are of this kind too
        values = []
        for number in range(len(array)):
            try:
                values.append(array[number].as_py())
            except ValueError as error:
                values.append(error)
    return values


def _record(path: Path, row: int, record: dict[str, Any]) -> dict[str, Any] | DataError:
    for name, value in record.items():
        if isinstance(value, UnicodeDecodeError):
            return DataError(
                f"{path}:{row}: field {name}: invalid UTF-8: byte {value.object[value.start]:#04x} at {value.start + 1}"
            )
        if isinstance(value, Exception):
            return DataError(f"{path}:{row}: field {name}: cannot be read: {' '.join(str(value).split())[:200]}")
    return record
