import bz2
import gzip
import json
import lzma
from pathlib import Path

import pytest

from hmoe import ConfigError, DataError
from hmoe.data.inputs import InputFile, list_input_files
from hmoe.data.readers import Document, read_documents

ROWS = [{"text": "one\n"}, {"text": "zwei é"}, {"text": "three\r\nlines\x00"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def documents(path: Path, **options: str) -> list[Document | DataError]:
    return [
        item
        for source in list_input_files([str(path)])
        for item in read_documents(source, options.get("text_field"))
    ]


def texts(path: Path, **options: str) -> list[str]:
    items = documents(path, **options)
    assert not any(isinstance(item, DataError) for item in items), items
    return [item.text for item in items if isinstance(item, Document)]


def zstd(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(data)


PACK = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
    ".bz2": bz2.compress,
    ".zstd": zstd,
}


@pytest.mark.parametrize("suffix", PACK)
def test_jsonl_in_every_compression(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(PACK[suffix](LINES))
    assert texts(path) == [row["text"] for row in ROWS]


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst", ".bz2"])
def test_truncated_compression_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(PACK[suffix](LINES * 1000)[:-9])
    with pytest.raises(DataError, match=rf"a\.jsonl{suffix}:\d+: cannot be read on, truncated or damaged"):
        documents(path)


def test_damaged_zstd_is_named(tmp_path: Path) -> None:
    data = bytearray(zstd(LINES * 1000))
    data[len(data) // 2 :] = b"\xff" * (len(data) - len(data) // 2)
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(data)
    with pytest.raises(DataError, match="truncated or damaged: zstd"):
        documents(path)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    for name, content in (("a.jsonl", LINES), ("a.txt", b"one")):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content)
        assert texts(tmp_path / name)[0].startswith("one")


def test_zstd_of_several_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstd(LINES) + zstd(LINES))
    assert len(texts(path)) == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b'{"text": "ok"}\n{"text": "\xff"}\n', ":2: invalid UTF-8: byte 0xff at column 11"),
        (b'{"text": "ok"}\n{"body": 1}\n', ":2: no field text or raw_content or content; has body"),
        (b'{"text": "ok"}\n\n{"text": 3}\n', ":3: field text must be text, is int"),
        (b'{"text": "ok"\n', ":1: not JSON"),
        (b"[1]\n", ":1: a record must be a JSON object"),
        (b'{"text": "\\ud800"}\n', ":1: field text is not valid Unicode"),
        (b'{"text":' + b"[" * 100_000 + b"\n", ":1: not JSON"),
    ],
)
def test_bad_jsonl_is_named_with_file_and_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    errors = [item for item in documents(path) if isinstance(item, DataError)]
    assert len(errors) == 1
    assert message in str(errors[0])
    assert str(path) in str(errors[0])


def test_txt_is_cut_at_empty_lines_and_loses_nothing(tmp_path: Path) -> None:
    text = "".join(f"Paragraph {i} " + "word " * 200 + "\n\n" for i in range(200))
    path = tmp_path / "a.txt"
    path.write_text(text)
    parts = texts(path)
    assert "".join(parts) == text
    assert len(parts) > 5
    assert all(part.startswith("Paragraph") for part in parts)


def test_txt_without_empty_lines_stays_in_flat_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x" * 99 + "\n" * 1 + ("y" * 99 + "\n") * 3000)
    assert len(texts(path)) > 3


def test_bare_carriage_returns_end_no_line_and_take_no_time(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"ab\r" * 1_000_000 + b"\n" + b"x")
    assert "".join(texts(path)).encode() == path.read_bytes()


def test_hidden_files_and_the_output_are_no_input(tmp_path: Path) -> None:
    for name in ("a.txt", ".b.txt", ".git/c.txt", "out/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [s.path.name for s in list_input_files([str(tmp_path)], leave_out=tmp_path / "out")] == ["a.txt"]
    with pytest.raises(DataError, match="no such file"):
        list_input_files(["name="])


def test_invalid_utf8_in_txt_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\nb\xe9d\nfine\n")
    errors = [str(item) for item in documents(path) if isinstance(item, DataError)]
    assert [error.partition(";")[0] for error in errors] == [
        f"{path}:2: invalid UTF-8: byte 0xe9 at column 2"
    ]
    assert "iconv -f LATIN1" in errors[0]


def test_parquet_with_its_rows_counted(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(
        pyarrow.table({"text": ["a", "b", None], "domain": ["x", "y", "y"], "n": [1, 2, 3]}), path
    )
    *good, bad = documents(path)
    assert good == [Document("a", "x"), Document("b", "y")]
    assert f"{path}:3: field text must be text" in str(bad)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"a\.parquet:1: .*damaged: parquet"):
        documents(path)


def test_redpajama_layout_and_field_names(tmp_path: Path) -> None:
    for name, row in {
        "arxiv/arxiv_1.jsonl": {"text": "a", "meta": {"timestamp": "x"}},
        "common_crawl/2023-06/en_head_0000.json.gz.dedup.classifier.jsonl.zst": {"text": "b", "meta": "{}"},
        "sample/sample.jsonl": {"text": "c", "red_pajama_subset": "github"},
        "v2/en_head.json.gz": {"raw_content": "d", "url": "u"},
        "slim/x.jsonl.zst": {"text": "e", "meta": {"redpajama_set_name": "RedPajamaC4"}},
    }.items():
        path = tmp_path / "rp" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PACK[path.suffix if path.suffix in PACK else ""](json.dumps(row).encode() + b"\n"))
    assert documents(tmp_path / "rp") == [
        Document("a", "arxiv"),
        Document("b", "common_crawl"),
        Document("c", "github"),
        Document("e", "RedPajamaC4"),
        Document("d", "v2"),
    ]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_template_joins_fields(kind: str, tmp_path: Path) -> None:
    """OpenOrca's columns."""
    rows = [{"id": "1", "system_prompt": "", "question": "Why {x}?", "response": r"So \n {id}."}]
    path = tmp_path / f"orca.{kind}"
    if kind == "jsonl":
        path.write_text(json.dumps(rows[0]) + "\n")
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    template = r"{system_prompt}\n{question}\n\n{response}"
    assert documents(path, text_field=template) == [Document("\nWhy {x}?\n\nSo \\n {id}.", "orca")]
    with pytest.raises(ConfigError, match=r"a brace that is not part of a \{field\}"):
        documents(path, text_field="{question} {{answer}")
    text = tmp_path / "plain.txt"
    text.write_text("as it is")
    assert documents(text, text_field=template) == [
        Document("as it is", "plain")
    ]  # a .txt file has no fields
    (error,) = documents(path, text_field="{question} {answer}")
    assert "orca." in str(error)
    assert ":1: no field answer; has " in str(error)


def test_named_sources_and_text_field(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "x", "text": "y", "domain": "own"}\n')
    assert [s.domain for s in list_input_files([f"mine={path}"])] == ["mine"]
    assert [item for s in list_input_files([f"mine={path}"]) for item in read_documents(s, "body")] == [
        Document("x", "mine")
    ]
    assert documents(path) == [Document("y", "own")]


def test_inputs_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        list_input_files([str(tmp_path / "absent")])
    with pytest.raises(DataError, match=r"holds no \.txt"):
        list_input_files([str(tmp_path)])
    odd = tmp_path / "a.pdf"
    odd.write_bytes(b"x")
    with pytest.raises(DataError, match="unknown kind"):
        documents(odd)


def test_an_empty_text_field_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\n')
    with pytest.raises(ConfigError, match="text_field is empty"):
        list(read_documents(InputFile(file, None, "a"), ""))
