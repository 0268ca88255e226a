"""Encodings, compressions and byte order marks: read as they are, or named."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pytest
import zstandard

from hmoe import DataError
from hmoe.data.inputs import InputFile
from hmoe.data.lines import read_line_parts
from hmoe.data.readers import Document, read_documents

LINE = json.dumps({"text": "one"}).encode() + b"\n"
MARK = b"\xef\xbb\xbf"
SKIPPABLE = b"\x50\x2a\x4d\x18\x08\0\0\0" + b"12345678"


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def documents(path: Path) -> list[str]:
    items = list(read_documents(InputFile(path, None, "d"), None))
    assert all(isinstance(item, Document) for item in items), items
    return [item.text for item in items if isinstance(item, Document)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.zst", SKIPPABLE + zstd(MARK + LINE)),
        ("a.jsonl.zst", zstd(b"") + zstd(MARK[:1]) + zstd(MARK[1:] + LINE)),
        ("a.jsonl.gz", gzip.compress(b"") + gzip.compress(MARK) + gzip.compress(LINE)),
        ("a.jsonl.xz", lzma.compress(b"") + lzma.compress(MARK + LINE)),
        ("a.jsonl.bz2", bz2.compress(b"") + bz2.compress(MARK + LINE)),
        ("a.jsonl", MARK + LINE),
    ],
)
def test_a_byte_order_mark_is_found_after_empty_frames(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert documents(path) == ["one"]


def test_files_joined_by_cat_may_have_a_mark_each(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes((MARK + LINE) * 2)
    assert documents(tmp_path / "a.jsonl") == ["one", "one"]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress, zstd])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.bz2", "a.jsonl.zst"])
def test_the_content_tells_the_compression(tmp_path: Path, pack: "type[bytes]", name: str) -> None:
    (tmp_path / name).write_bytes(pack(LINE * 2))
    assert documents(tmp_path / name) == ["one", "one"]


@pytest.mark.parametrize(
    ("ending", "whole"),
    [
        ("gz", gzip.compress(b"x")),
        ("bz2", bz2.compress(b"x")),
        ("xz", lzma.compress(b"x")),
        ("zst", zstd(b"x")),
    ],
)
@pytest.mark.parametrize("kept", range(1, 9))
def test_a_compressed_file_that_was_cut_at_its_very_beginning_is_no_text(
    tmp_path: Path, ending: str, whole: bytes, kept: int
) -> None:
    (tmp_path / f"a.txt.{ending}").write_bytes(whole[:kept])
    with pytest.raises(DataError, match=rf"a\.txt\.{ending}"):
        documents(tmp_path / f"a.txt.{ending}")
    (tmp_path / "a.txt").write_bytes(b"BZh9")
    assert documents(tmp_path / "a.txt") == ["BZh9"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.txt.gz"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_other_encodings_are_named_with_the_way_out(tmp_path: Path, name: str, encoding: str) -> None:
    content = (LINE.decode() * 3).encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(
        DataError, match=rf"{name}: is {encoding[:6].upper()}.*must be UTF-8; .*iconv -f UTF-"
    ):
        documents(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.json",
            b'[\n {"text": "x"},\n {"text": "y"}\n]\n',
            r"one JSON array over several lines; .*jq -c '\.\[\]'",
        ),
        ("a.json", b'[{"text": "x"}, {"text": "y"}]', r"is one JSON array of 2 objects; .*jq -c '\.\[\]'"),
        ("a.jsonl", b'{\n "text": "x"\n}\n', r"one JSON object over several lines; .*jq -c '\.'"),
        ("a.txt", b"PK\x03\x04\x00", "is a zip archive"),
        ("a.jsonl", b"PAR1\x15\x04", "is a parquet file"),
    ],
)
def test_what_is_no_lines_of_records_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        documents(tmp_path / name)


def test_a_file_without_a_record_gives_an_empty_document(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "b.jsonl").write_bytes(b"\n\n")
    assert documents(tmp_path / "a.jsonl.gz") == documents(tmp_path / "b.jsonl") == [""]


def test_long_lines_come_in_parts_that_are_cut_after_white_space(tmp_path: Path) -> None:
    text = "ab cde\tfghij \n" + "é" * 40 + "\nshort\n" + "word " * 9
    (tmp_path / "a.txt").write_text(text)
    parts = list(read_line_parts(tmp_path / "a.txt", 8))
    assert b"".join(raw for _, _, raw in parts) == text.encode()
    assert all(len(raw) <= 8 for _, _, raw in parts)
    assert [raw.decode() for _, _, raw in parts][:3] == ["ab cde\t", "fghij \n", "éééé"]
    assert [(line, column) for line, column, _ in parts][:4] == [(1, 1), (1, 8), (2, 1), (2, 9)]


def test_a_text_of_one_line_is_many_documents(tmp_path: Path) -> None:
    text = "word " * 60_000
    (tmp_path / "a.txt").write_text(text)
    texts = documents(tmp_path / "a.txt")
    assert "".join(texts) == text
    assert max(map(len, texts)) <= 1 << 16
    (tmp_path / "a.txt").write_bytes(text.encode() + b"\xff")
    *_, error = read_documents(InputFile(tmp_path / "a.txt", None, "d"), None)
    assert f"a.txt:1: invalid UTF-8: byte 0xff at column {len(text) + 1}" in str(error)


def test_brought_benchmark_files_are_read_as_texts_are(tmp_path: Path) -> None:
    from hmoe.data.benchmarks import BROUGHT_TASKS, _read_brought

    row = json.dumps(dict.fromkeys(BROUGHT_TASKS["wic"].columns, 0)).encode() + b"\n"
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(MARK + row + b"\n" + row))
    ((rows, content),) = _read_brought({"wic": tmp_path / "a.jsonl"}).values()
    assert (rows, content) == (2, row * 2)
    (tmp_path / "a.jsonl").write_bytes(row.decode().encode("utf-16"))
    with pytest.raises(DataError, match=r"a\.jsonl: is UTF-16, must be UTF-8"):
        _read_brought({"wic": tmp_path / "a.jsonl"})
