"""Which files are read: inputs and folders, linked ones too, in a fixed order; what is left out is named with its reason."""

import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from hmoe.errors import DataError

SUFFIX = re.compile(r"\.(txt|jsonl|ndjson|json|parquet)(?:\.(gz|xz|zstd?|bz2))?$", re.IGNORECASE)
KINDS = ".txt, .jsonl, .ndjson, .json or .parquet (also .gz, .xz, .zst, .zstd, .bz2)"
_NAMED = 5  # of what is left out


class Source(NamedTuple):
    """One input file; `domain` is None where records or folders name it."""

    path: Path
    domain: str | None
    folder_domain: str


class LeftOut(NamedTuple):
    """Something in a folder that is not read, and why."""

    path: str
    reason: str


def _ignore(line: str) -> None:
    """Say nothing."""


def sources(inputs: list[str], leave_out: Path | None = None, say: Callable[[str], None] = _ignore) -> list[Source]:
    """Files of `PATH` or `domain=PATH` inputs; folders are walked in sorted order, linked folders once.

    Without a name the domain is the record's own (`domain`, RedPajama's `red_pajama_subset`), else the first folder
    below the input, else the input's own name. One line for `say` counts and names what is left out of the folders.

    Raises:
        DataError: if there is nothing to read, or a file that was named is of an unknown kind.
    """
    files: list[Source] = []
    left_out: list[LeftOut] = []
    for item in inputs:
        name, equals, rest = item.partition("=")
        named = bool(equals) and not os.path.exists(item)
        domain, root = (name, Path(rest)) if named else (None, Path(item))
        if not os.path.exists(root) or (named and not rest):
            raise DataError(f"{root}: no such file or folder")
        if root.is_dir():
            paths = _files(root, leave_out, left_out)
            files += [Source(path, domain, _folder_domain(path, root)) for path in paths]
            continue
        if not SUFFIX.search(root.name):
            raise DataError(f"{root}: unknown kind; must end in {KINDS}")
        if not root.is_file():
            raise DataError(f"{root}: not a file")
        files.append(Source(root, domain, SUFFIX.sub("", root.name) or root.name))
    if left_out:
        say(_describe(left_out))
    return files


def _files(root: Path, leave_out: Path | None, left_out: list[LeftOut]) -> list[Path]:
    """Sorted files of a folder; what is not read is added to `left_out`."""
    entries = list(_walk(root, leave_out))
    others = [entry for entry in entries if isinstance(entry, LeftOut)]
    left_out += others
    paths = sorted(entry for entry in entries if not isinstance(entry, LeftOut))
    if not paths:
        reasons = f"; {_describe(others)}" if others else ""
        raise DataError(f"{root}: holds no {KINDS} file{reasons}")
    return paths


def _folder_domain(path: Path, root: Path) -> str:
    parts = path.relative_to(root).parts
    return parts[0] if len(parts) > 1 else root.resolve().name


def _describe(left_out: list[LeftOut]) -> str:
    names = ", ".join(f"{entry.path} ({entry.reason})" for entry in left_out[:_NAMED])
    more = f" and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
    return f"left out {len(left_out)}: {names}{more}"


def _walk(root: Path, leave_out: Path | None) -> Iterator[Path | LeftOut]:
    """Files that are read and entries that are not. Linked folders come after the others, so that a folder that is also
    reached by a link keeps its own name, and each real folder is read once, which ends circles.
    """
    own = os.path.realpath(leave_out) if leave_out is not None else None
    visited: set[str] = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop(0)
        if folder != root and os.path.realpath(folder) in visited:
            yield LeftOut(str(folder), "links to a folder that is read already")
            continue
        for entry in _entries(folder, own, visited):
            if isinstance(entry, Path) and entry.is_dir():
                waiting.append(entry)
            else:
                yield entry


def _entries(top: Path, own: str | None, visited: set[str]) -> Iterator[Path | LeftOut]:
    """Of a folder and of those below it; a link to a folder is given, not followed."""
    try:
        visited.add(os.path.realpath(top))
        with os.scandir(top) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        yield LeftOut(str(top), f"cannot be read: {error.strerror}")
        return
    for entry in entries:
        path = top / entry.name
        if entry.name.startswith("."):
            yield LeftOut(str(path), "hidden")
            continue
        try:
            mode = path.stat().st_mode
        except OSError as error:
            reason = "a link to nothing" if path.is_symlink() else f"cannot be read: {error.strerror}"
            yield LeftOut(str(path), reason)
            continue
        if stat.S_ISDIR(mode):
            yield from _folder(path, own, visited)
        elif not stat.S_ISREG(mode):
            yield LeftOut(str(path), "not a file")
        elif not SUFFIX.search(entry.name):
            yield LeftOut(str(path), "unknown kind")
        else:
            yield path


def _folder(path: Path, own: str | None, visited: set[str]) -> Iterator[Path | LeftOut]:
    real = os.path.realpath(path)
    if real == own:
        yield LeftOut(str(path), "the output")
    elif path.is_symlink():
        yield path
    elif real in visited:  # by a link
        yield LeftOut(str(path), "read already through a link")
    else:
        yield from _entries(path, own, visited)
