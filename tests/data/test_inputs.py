"""Which files a folder gives, and that nothing in it is passed over without a word."""

import os
from pathlib import Path

import pytest

from hmoe import DataError
from hmoe.data.inputs import list_input_files


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x\n")


def names(root: Path, notes: list[str] | None = None, leave_out: Path | None = None) -> list[str]:
    lines: list[str] = [] if notes is None else notes
    return [str(s.path.relative_to(root)) for s in list_input_files([str(root)], leave_out, lines.append)]


def test_endings_in_any_case_and_of_every_compression(tmp_path: Path) -> None:
    files = [
        "A.TXT",
        "B.Jsonl.GZ",
        "c.ndjson",
        "d.json.zstd",
        "e.PARQUET",
        "f.jsonl.bz2",
        "g.txt.xz",
        "h.ndjson.zst",
    ]
    write(tmp_path, *files)
    notes: list[str] = []
    assert names(tmp_path, notes) == sorted(files)
    assert notes == []
    assert list_input_files([str(tmp_path / "B.Jsonl.GZ")])[0].folder_domain == "B"


def test_what_is_left_out_is_counted_and_named_with_its_reason(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", ".hidden.txt", ".git/b.txt", "c.pdf", "out/d.txt")
    (tmp_path / "nothing.txt").symlink_to(tmp_path / "absent.txt")
    notes: list[str] = []
    assert names(tmp_path, notes, tmp_path / "out") == ["a.txt"]
    (line,) = notes
    assert line.startswith("left out 5: ")
    for entry in (
        ".git (hidden)",
        ".hidden.txt (hidden)",
        "c.pdf (unknown kind)",
        "nothing.txt (a link to nothing)",
    ):
        assert f"{tmp_path / entry}" in line
    assert "out (the output)" in line
    (tmp_path / "e.csv").write_text("x")
    assert "left out 6: " in (names(tmp_path, notes, tmp_path / "out"), notes[-1])[1]
    assert notes[-1].endswith(" and 1 more")
    write(tmp_path / "only", "a.csv")
    with pytest.raises(DataError, match=r"holds no \.txt.*a\.csv \(unknown kind\)"):
        list_input_files([str(tmp_path / "only")])


def test_linked_folders_and_files_are_read_once_and_circles_end(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    write(root, "books/a.txt")
    write(outside, "b.txt", "deep/c.txt")
    (root / "linked").symlink_to(outside)
    (root / "books" / "file.txt").symlink_to(outside / "b.txt")
    (outside / "back").symlink_to(root)
    (root / "abooks").symlink_to(root / "books")  # before the folder it links to: that keeps its name
    (root / "self").symlink_to("self")
    notes: list[str] = []
    assert names(root, notes) == ["books/a.txt", "books/file.txt", "linked/b.txt", "linked/deep/c.txt"]
    assert notes[0].count("links to a folder that is read already") == 2
    assert "self (a link to nothing)" in notes[0]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.txt", "locked/b.txt")
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    notes: list[str] = []
    assert names(tmp_path, notes) == ["a.txt"]
    assert "locked (cannot be read: Permission denied)" in notes[0]


def test_a_file_that_was_named_is_read_or_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", "b=c.txt")
    with pytest.raises(DataError, match=r"a\.csv: unknown kind; must end in \.txt, \.jsonl, \.ndjson"):
        list_input_files([str(tmp_path / "a.csv")])
    assert list_input_files([str(tmp_path / "b=c.txt")])[0].domain is None
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(DataError, match=r"pipe\.txt: not a file"):
        list_input_files([str(tmp_path / "pipe.txt")])


def test_an_empty_input_is_not_the_current_folder() -> None:
    with pytest.raises(DataError, match="an input is empty"):
        list_input_files([""])
