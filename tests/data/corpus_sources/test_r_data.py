from pathlib import Path

import pytest

from hmoe.data.corpus_sources.r_data import read_character_vectors
from tests.data.corpus_sources.fakes import make_r_database


def write(folder: Path, vectors: dict[str, list[str]]) -> None:
    for name, content in make_r_database(vectors).items():
        (folder / name).write_bytes(content)


def test_vectors_come_sorted_by_name(tmp_path: Path) -> None:
    write(tmp_path, {"emma": ["Chapter I", "", "Élan"], "a": ["x"]})
    assert list(read_character_vectors(tmp_path).items()) == [
        ("a", ["x"]),
        ("emma", ["Chapter I", "", "Élan"]),
    ]


def test_other_values_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"emma": ["x"]})
    index = tmp_path / "Rdata.rdx"
    import gzip

    content = gzip.decompress(index.read_bytes())
    index.write_bytes(
        gzip.compress(content.replace(b"\0\0\0\x0d", b"\0\0\0\x18", 1))
    )  # raw bytes, not integers
    with pytest.raises(ValueError, match="R data of kind 24 is not read"):
        read_character_vectors(tmp_path)
