"""The texts of Bibles, packed as the real packages have them."""

import random
import subprocess
from pathlib import Path

import pytest

from hmoe.data.corpus_sources.bible_texts import decompress_lzw, read_king_james, read_sword_text
from tests.conftest import sentences
from tests.data.corpus_sources.fakes import compress_lzw, make_sword_module, make_windows

TEXT = sentences(0, 800).encode()
NOISE = random.Random(0).randbytes(70_000)


@pytest.mark.parametrize(
    "packed",
    [
        compress_lzw(b"ab"),
        compress_lzw(b"a" * 600),
        compress_lzw(TEXT),
        compress_lzw(TEXT, 700),
        compress_lzw(NOISE),
    ],
    ids=["two letters", "code before its entry", "wide codes", "cleared", "a full table"],
)
def test_lzw_is_read_as_gzip_reads_it(packed: bytes, tmp_path: Path) -> None:
    file = tmp_path / "text.Z"
    file.write_bytes(b"\x1f\x9d\x90" + packed)  # the header of `compress`: blocks, codes of 16 bits at most
    assert (
        decompress_lzw(packed)
        == subprocess.run(["gzip", "-dc", file], capture_output=True, check=True).stdout
    )


def test_what_was_packed_comes_back() -> None:
    assert decompress_lzw(compress_lzw(TEXT)) == TEXT
    assert decompress_lzw(compress_lzw(TEXT, 700)) == TEXT


@pytest.mark.parametrize("packed", [b"\xff\xff\xff", bytes([0x01, 0x03, 0, 0])])
def test_a_code_without_entry_is_damage(packed: bytes) -> None:
    with pytest.raises(ValueError, match="names nothing"):
        decompress_lzw(packed)


def test_verses_become_chapters_across_windows(tmp_path: Path) -> None:
    file = tmp_path / "bible.data"
    file.write_bytes(
        make_windows(
            b"Holy Bible.  Textfile 930105.\nGe1:1 In the beginning.\nGe1:2 And the earth.\n1Sa3:1 An",
            b"d the child.\n",
        )
    )
    assert list(read_king_james(file)) == [
        ("Ge1", "In the beginning. And the earth."),
        ("1Sa3", "And the child."),
    ]


def test_markup_and_notes_of_a_sword_module_are_gone(tmp_path: Path) -> None:
    verse = '<chapter osisID="Gen.1"/><verse>In the <w lemma="x">beginning</w><note n="1">or <i>start</i></note>, God'
    files = make_sword_module(
        ot=[f"{verse} &amp;  the earth.</verse>", "<div/>"], nt=["<l>a</l>\n\n<l>b</l>"]
    )
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    texts = [(name, text.strip()) for name, text in read_sword_text(tmp_path)]
    assert texts == [("ot/1#1", "In the beginning, God & the earth."), ("nt/1#1", "a\n\nb")]
