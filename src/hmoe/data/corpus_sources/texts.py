"""Texts on their way from a package to the corpus: read from files, grouped into documents, cleaned."""

import gzip
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class SourceText(NamedTuple):
    """One document: its name within its source, and its text."""

    name: str
    text: str


def read_file(path: Path) -> str:
    """Return the text of a file, gzipped or not, in UTF-8, or in Latin-1 where it is not UTF-8."""
    content = path.read_bytes()
    if content.startswith(b"\x1f\x8b"):
        content = gzip.decompress(content)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def list_files(top: Path, pattern: str) -> Iterator[tuple[str, Path]]:
    """Give (name, path) of the files below a folder whose name matches in full, in sorted order; links are left out."""
    names = [
        (Path(parent) / name).relative_to(top).as_posix()
        for parent, _, names in os.walk(top)
        for name in names
    ]
    for name in sorted(names):
        path = top / name
        if re.fullmatch(pattern, name) and path.is_file() and not path.is_symlink():
            yield name, path


def make_file_reader(
    top: str, pattern: str, convert: Callable[[str], str] | None = None
) -> Callable[[Sequence[Path]], Iterator[SourceText]]:
    """Return a reader that makes a document of every file.

    Args:
        top: the folder in a package under which the files lie, a glob.
        pattern: what a file's name below it must match in full, a regular expression.
        convert: makes plain text of a file's content.
    """

    def read_files(folders: Sequence[Path]) -> Iterator[SourceText]:
        for folder in folders:
            for place in _list_places(folder, top):
                for name, path in list_files(place, pattern):
                    text = read_file(path)
                    yield SourceText(name.removesuffix(".gz"), convert(text) if convert else text)

    return read_files


def _list_places(folder: Path, top: str) -> list[Path]:
    """Return the folders of a package that match, each once; a link may lead to another, or out of the package."""
    root = folder.resolve()
    return sorted({place for path in folder.glob(top) if (place := path.resolve()).is_relative_to(root)})


def group_parts(name: str, parts: Iterable[str], size: int, joint: str = "\n\n") -> Iterator[SourceText]:
    """Join parts in their order into documents of more than `size` characters, NAME#1, NAME#2, ..."""
    group: list[str] = []
    count = num_letters = 0
    for part in parts:
        group.append(part)
        num_letters += len(part)
        if num_letters > size:
            count += 1
            yield SourceText(f"{name}#{count}", joint.join(group))
            group, num_letters = [], 0
    if group:
        yield SourceText(f"{name}#{count + 1}", joint.join(group))


def join_lines(text: str) -> str:
    """Return prose with one line a paragraph, where lines of a fixed width stood."""
    paragraphs = re.split(r"\n[ \t]*\n\s*", text.strip())
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def clean_code(text: str) -> str:
    """Return a text without carriage returns, control characters and white space at the end of lines."""
    text = _CONTROL.sub("", text.replace("\r\n", "\n").replace("\x0c", "\n"))
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).strip("\n")


def clean_prose(text: str) -> str:
    """Return a text as `clean_code` does, with plain spaces and at most one empty line between paragraphs."""
    return re.sub(r"\n{3,}", "\n\n", clean_code(text.replace("\u00a0", " "))).strip()
