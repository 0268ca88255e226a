import json
from pathlib import Path

from hmoe.data.corpus_sources.records import write_records
from hmoe.data.corpus_sources.sources import SOURCES
from hmoe.data.corpus_sources.texts import SourceText
from hmoe.storage import hash_file
from tests.data.corpus_sources.fakes import prose


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_record_says_where_it_comes_from(tmp_path: Path) -> None:
    text = prose("é rose") + "\n\n\n\nend"
    path = tmp_path / "a.jsonl"
    tally = write_records(path, SOURCES["vim_doc"], [SourceText("a.txt", text)])
    cleaned = text.replace(" \n\n\n\n", "\n\n")
    assert read(path) == [
        {
            "id": "vim_doc/a.txt",
            "source": "vim_doc",
            "domain": "docs",
            "licence": "OPL-1.0, a copyleft",
            "text": cleaned,
        }
    ]
    assert (tally.documents, tally.bytes, tally.sha256) == (1, len(cleaned.encode()), hash_file(path))
    assert "é" in path.read_text()


def test_code_keeps_its_empty_lines(tmp_path: Path) -> None:
    text = f"x = 1\n\n\n# {prose('x was')}".rstrip()
    write_records(tmp_path / "a", SOURCES["python_code"], [SourceText("a.py", text)])
    assert read(tmp_path / "a")[0]["text"] == text


def test_duplicates_and_short_texts_are_left_out_and_counted(tmp_path: Path) -> None:
    first, second = prose("a"), prose("b")
    texts = [first, second, "short", first + "  \n", second, "x" * 199, "x" * 200]
    named = [SourceText(str(i), text) for i, text in enumerate(texts)]
    tally = write_records(tmp_path / "a", SOURCES["austen"], named)
    assert [row["id"] for row in read(tmp_path / "a")] == ["austen/0", "austen/1", "austen/6"]
    assert (tally.documents, tally.duplicates, tally.short, tally.beyond_limit) == (3, 2, 2, 0)


def test_a_source_that_is_too_large_is_thinned_out_evenly(tmp_path: Path) -> None:
    texts = [SourceText(f"{i:03d}", f"{i:03d} " + "x" * 996) for i in range(100)]
    assert write_records(tmp_path / "all", SOURCES["austen"], texts, 100_000).documents == 100
    tally = write_records(tmp_path / "a", SOURCES["austen"], texts, 50_999)
    places = [int(row["id"].removeprefix("austen/")) for row in read(tmp_path / "a")]
    assert (tally.documents, tally.bytes, tally.beyond_limit) == (50, 50_000, 50)
    assert places == sorted(places)
    assert 15 < sum(place < 50 for place in places) < 35  # the hash of names decides, not their order
    again = write_records(tmp_path / "b", SOURCES["austen"], reversed(texts), 50_999)
    assert again.bytes == tally.bytes
    assert sorted(read(tmp_path / "b"), key=lambda row: row["id"]) == read(tmp_path / "a")
