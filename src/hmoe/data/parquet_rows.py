"""Read rows of parquet files: only columns needed; a value that Python cannot hold costs one row."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hmoe.errors import DataError, make_missing_extra_error

_BATCH_ROWS = 1024  # rows read at once, at most
_BATCH_BYTES = 16 << 20  # of text read at once, about
_BUFFER_BYTES = 1 << 20

ParquetRow = tuple[int, dict[str, Any] | DataError]


class _Column(NamedTuple):
    """A column of text: the record's key for it, and the names that lead to it, several if it is nested."""

    key: str
    place: tuple[str, ...]


def read_parquet_rows(
    path: Path, names: Sequence[str], choices: Sequence[str], extras: Sequence[str]
) -> Iterator[ParquetRow]:
    """Read (row, record) of every row, counted from 1; an unusable row has an error in the record's place.

    A record holds text fields under their own names, "doc.text" for a nested one.

    Args:
        path: the file.
        names: fields that a row must have; none: the first of `choices` that the file has.
        choices: fields one of which a row must have where `names` is empty.
        extras: fields that a row may have; they are passed over where the file has no text there.

    Raises:
        OSError: if the file is damaged.
        DataError: if it has two columns of one name.
    """
    try:
        import pyarrow  # noqa: PLC0415 - optional extra
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError:
        raise make_missing_extra_error("parquet files", "data") from None
    try:
        file = parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES)
        schema = file.schema_arrow
        names = names or [name for name in choices if name in schema.names][:1] or [" or ".join(choices)]
        places = {name: _find_place(schema, name) for name in names}
        if problem := _describe_problem(path, schema, places):
            yield from (
                (row, DataError(f"{path}:{row}: {problem}")) for row in range(1, file.metadata.num_rows + 1)
            )
            return
        places |= {name: _find_place(schema, name) for name in extras}
        columns = [
            _Column(name, place)
            for name, place in places.items()
            if place and _is_text(_type_at(schema, place))
        ]
        yield from _read_columns(path, file, columns)
    except pyarrow.ArrowException as error:
        raise OSError(f"parquet: {' '.join(str(error).split())}") from None


def _read_columns(path: Path, file: Any, columns: list[_Column]) -> Iterator[ParquetRow]:
    row = 0
    paths = [".".join(column.place) for column in columns]
    for batch in file.iter_batches(batch_size=_count_batch_rows(file.metadata, paths), columns=paths):
        values = {column.key: _list_values(_array_at(batch, column.place)) for column in columns}
        for cells in zip(*values.values(), strict=True):
            row += 1
            yield row, _check_record(path, row, dict(zip(values, cells, strict=True)))


def _find_place(schema: Any, name: str) -> tuple[str, ...] | None:
    """Find a field: a column of that whole name, else below one, as doc.text is below doc, or None."""
    if name in schema.names:
        return (name,)
    for dot, letter in enumerate(name):
        if letter != "." or name[:dot] not in schema.names:
            continue
        below = _Children(_storage_type(schema.field(schema.names.index(name[:dot])).type))
        if (rest := _find_place(below, name[dot + 1 :])) is not None:
            return (name[:dot], *rest)
    return None


class _Children:
    """The fields of a struct type, read like a schema's; a type of another kind has none."""

    def __init__(self, kind: Any) -> None:
        count = kind.num_fields if str(kind).startswith("struct<") else 0
        self._fields = [kind.field(index) for index in range(count)]
        self.names = [field.name for field in self._fields]

    def field(self, index: int) -> Any:
        """Return a field by its index."""
        return self._fields[index]


def _type_at(schema: Any, place: tuple[str, ...]) -> Any:
    kind = _storage_type(schema.field(schema.names.index(place[0])).type)
    return kind if len(place) == 1 else _type_at(_Children(kind), place[1:])


def _storage_type(kind: Any) -> Any:
    """Return the type that an extension type is stored as, and any other type itself."""
    return getattr(kind, "storage_type", kind)


def _is_text(kind: Any) -> bool:
    kind = getattr(kind, "value_type", kind) if str(kind).startswith("dictionary<") else kind
    return str(kind) in ("string", "large_string", "string_view")


def _describe_problem(path: Path, schema: Any, places: dict[str, tuple[str, ...] | None]) -> str:
    """Say why no row of the file can have its text; "" if rows can."""
    for name, place in places.items():
        if place is None:
            return f"no field {name}; has {', '.join(schema.names)[:200]}"
        if schema.names.count(place[0]) > 1:
            raise DataError(f"{path}: has two columns {place[0]}")
        if not _is_text(_type_at(schema, place)):
            return f"field {name} must be text, is {str(_type_at(schema, place))[:80]}"
    return ""


def _count_batch_rows(metadata: Any, paths: list[str]) -> int:
    """Return how many rows are read at once: fewer where texts are long."""
    mean_bytes = 1.0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        columns = (group.column(column) for column in range(group.num_columns))
        wanted = sum(column.total_uncompressed_size for column in columns if column.path_in_schema in paths)
        mean_bytes = max(mean_bytes, wanted / max(group.num_rows, 1))
    return int(max(1, min(_BATCH_ROWS, _BATCH_BYTES // mean_bytes)))


def _array_at(batch: Any, place: tuple[str, ...]) -> Any:
    from pyarrow import compute  # noqa: PLC0415 - optional extra

    array = batch.column(batch.schema.names.index(place[0]))
    for name in place[1:]:
        array = getattr(array, "storage", array)
        array = compute.struct_field(array, [_Children(array.type).names.index(name)])
    return getattr(array, "storage", array)


def _list_values(array: Any) -> list[Any]:
    """List the values of an array, with an error in place of one that Python cannot hold."""
    try:
        values: list[Any] = array.to_pylist()
    except ValueError:  # invalid UTF-8; Arrow's own errors of values are of this kind too
        values = []
        for index in range(len(array)):
            try:
                values.append(array[index].as_py())
            except ValueError as error:
                values.append(error)
    return values


def _check_record(path: Path, row: int, record: dict[str, Any]) -> dict[str, Any] | DataError:
    for name, value in record.items():
        if isinstance(value, UnicodeDecodeError):
            return DataError(
                f"{path}:{row}: field {name}: invalid UTF-8: byte {value.object[value.start]:#04x} at {value.start + 1}"
            )
        if isinstance(value, Exception):
            return DataError(
                f"{path}:{row}: field {name}: cannot be read: {' '.join(str(value).split())[:200]}"
            )
    return record
