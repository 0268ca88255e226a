"""Parquet: only what is needed is read, and a value that Python cannot hold costs its row, not the file."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from hmoe import DataError
from hmoe.data.inputs import InputFile
from hmoe.data.readers import Document, read_documents

TEXTS = ["first", "second"]
INVALID = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\3\0\0\0\6\0\0\0"), pa.py_buffer(b"a\xe9babc")]
)


def items(
    path: Path, columns: dict[str, Any], field: str | None = None, domain: str | None = None
) -> list[Any]:
    parquet.write_table(pa.table(columns), path / "a.parquet")
    return list(read_documents(InputFile(path / "a.parquet", domain, "folder"), field))


def test_invalid_utf8_costs_its_row(tmp_path: Path) -> None:
    error, good = items(tmp_path, {"text": INVALID})
    assert good == Document("abc", "folder")
    assert "a.parquet:1: field text: invalid UTF-8: byte 0xe9 at 2" in str(error)


OUT_OF_RANGE = {  # what Python's own types cannot hold, or hold only with pandas
    pa.timestamp("us"): 10**18,
    pa.timestamp("ns"): 1_700_000_000_123_456_789,
    pa.date32(): 10**9,
    pa.duration("us"): 10**18,
    pa.time64("ns"): 1,
    pa.map_(pa.string(), pa.timestamp("us")): [("k", 10**18)],
}


@pytest.mark.parametrize("kind", OUT_OF_RANGE, ids=str)
def test_columns_that_are_not_needed_are_not_read(tmp_path: Path, kind: Any) -> None:
    other = pa.array([OUT_OF_RANGE[kind]] * 2, kind)
    meta = pa.StructArray.from_arrays([other, pa.array(["wiki", None])], ["other", "domain"])
    expected = [Document("first", "wiki"), Document("second", "folder")]
    assert items(tmp_path, {"text": TEXTS, "meta": meta, "other": other}) == expected
    assert items(tmp_path, {"text": TEXTS, "domain": other}) == [Document(text, "folder") for text in TEXTS]


def test_meta_that_is_no_text_or_holds_invalid_text_is_no_matter(tmp_path: Path) -> None:
    expected = [Document(text, "folder") for text in TEXTS]
    assert items(tmp_path, {"text": TEXTS, "meta": INVALID}) == expected
    assert (
        items(tmp_path, {"text": TEXTS, "meta": pa.StructArray.from_arrays([INVALID], ["src"])}) == expected
    )
    bad, good = items(tmp_path, {"text": TEXTS, "domain": INVALID})
    assert "a.parquet:1: field domain: invalid UTF-8" in str(bad)
    assert good == Document("second", "abc")
    assert items(tmp_path, {"text": TEXTS, "domain": INVALID}, domain="own") == [
        Document(t, "own") for t in TEXTS
    ]


def test_a_text_column_of_another_type_is_named(tmp_path: Path) -> None:
    for column, kind in (
        ([1, 2], "int64"),
        (pa.array([10**18] * 2, pa.timestamp("ns")), "timestamp"),
        ([b"a", b"b"], "binary"),
    ):
        errors = items(tmp_path, {"text": column})
        assert [
            f"a.parquet:{row}: field text must be text, is {kind}" in str(e)
            for row, e in enumerate(errors, 1)
        ] == [True] * 2
    assert "no field body; has text" in str(items(tmp_path, {"text": TEXTS}, "body")[0])


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.json_()], ids=str
)
def test_every_type_of_text_is_text(tmp_path: Path, kind: Any) -> None:
    column = (
        pa.ExtensionArray.from_storage(kind, pa.array(TEXTS))
        if isinstance(kind, pa.BaseExtensionType)
        else pa.array(TEXTS, kind)
    )
    assert items(tmp_path, {"text": column}) == [Document(text, "folder") for text in TEXTS]


def test_nested_text_fields(tmp_path: Path) -> None:
    doc = [{"text": "inner", "n": {"x": "deep"}}, None]
    inner, missing = items(tmp_path, {"doc": doc}, "doc.text")
    assert inner == Document("inner", "folder")
    assert "a.parquet:2: field doc.text must be text, is NoneType" in str(missing)
    assert items(tmp_path, {"doc": doc[:1]}, "{doc.n.x}!")[0].text == "deep!"
    assert items(tmp_path, {"doc": doc[:1], "doc.text": ["whole"]}, "doc.text")[0].text == "whole"
    assert items(tmp_path, {"a.b": doc[:1]}, "a.b.text")[0].text == "inner"
    assert "no field doc.body; has doc" in str(items(tmp_path, {"doc": doc[:1]}, "doc.body")[0])


def test_nested_text_fields_of_json(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"doc": {"text": "inner"}}\n{"doc.text": "whole", "doc": {"text": "inner"}}\n{"doc": 1}\n'
    )
    *good, bad = read_documents(InputFile(path, None, "folder"), "doc.text")
    assert good == [Document("inner", "folder"), Document("whole", "folder")]
    assert "a.jsonl:3: no field doc.text; has doc" in str(bad)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(TEXTS), pa.array(TEXTS)], ["text", "text"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="two columns text"):
        list(read_documents(InputFile(tmp_path / "a.parquet", None, "folder"), None))
