import gzip
from pathlib import Path

from hmoe.data.corpus_sources import texts


def test_files_are_read_whatever_they_are_in(tmp_path: Path) -> None:
    contents = {"a": "é".encode(), "b": "é".encode("latin-1"), "c": gzip.compress("é".encode())}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert texts.read_file(tmp_path / name) == "é"


def test_files_come_sorted_without_links(tmp_path: Path) -> None:
    for name in ("b/z.txt", "b-a/y.txt", "a.txt", "a.txt.gz", "a.html"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "link.txt").symlink_to("a.txt")
    names = [name for name, _ in texts.list_files(tmp_path, r".*\.txt(\.gz)?")]
    assert names == ["a.txt", "a.txt.gz", "b-a/y.txt", "b/z.txt"]
    (tmp_path / "b" / "whole").symlink_to(".")
    (tmp_path / "b-link").symlink_to("b")
    (tmp_path / "b-outside").symlink_to(tmp_path.parent)
    read = texts.make_file_reader("b*", r".*\.txt", str.upper)
    assert list(read([tmp_path])) == [("z.txt", "B/Z.TXT"), ("y.txt", "B-A/Y.TXT")]


def test_parts_are_grouped_until_they_are_long_enough() -> None:
    groups = texts.group_parts("n", ["aaa", "bb", "c", "dddd", "e"], 4, joint="|")
    assert list(groups) == [("n#1", "aaa|bb"), ("n#2", "c|dddd"), ("n#3", "e")]
    assert list(texts.group_parts("n", [], 4)) == []


def test_lines_of_a_paragraph_are_joined() -> None:
    assert texts.join_lines("\n A b\nc  d\n \n\n  e\nf\n") == "A b c d\n\ne f"


def test_cleaning_keeps_the_layout_of_code() -> None:
    raw = "\n  def f(): \t\r\n\treturn 1\x00\x0c\n\n\n\nx\u00a0= 2\n\n"
    assert texts.clean_code(raw) == "  def f():\n\treturn 1\n\n\n\n\nx\u00a0= 2"
    assert texts.clean_prose(raw) == "def f():\n\treturn 1\n\nx = 2"
