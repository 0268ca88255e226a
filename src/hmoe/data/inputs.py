"""List the files to read, of inputs and folders, in a fixed order; what is left out is named."""

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from hmoe.errors import DataError

SUFFIX = re.compile(r"\.(txt|jsonl|ndjson|json|parquet)(?:\.(gz|xz|zstd?|bz2))?$", re.IGNORECASE)
KINDS = ".txt, .jsonl, .ndjson, .json or .parquet (also .gz, .xz, .zst, .zstd, .bz2)"
_NUM_NAMED = 5  # entries that a line names of what is left out


class InputFile(NamedTuple):
    """One input file and what it says of its documents' domain.

    Attributes:
        path: the file.
        domain: the domain that the user named; None where records or folders name it.
        folder_domain: the domain of records that do not name one.
    """

    path: Path
    domain: str | None
    folder_domain: str


class LeftOut(NamedTuple):
    """An entry of a folder that is not read, and the reason."""

    path: str
    reason: str


def _ignore(line: str) -> None:
    """Say nothing."""


def list_input_files(
    inputs: list[str], leave_out: Path | None = None, say: Callable[[str], None] = _ignore
) -> list[InputFile]:
    """List the files of `PATH` or `domain=PATH` inputs; folders are walked in sorted order, linked ones once.

    Without a name the domain is the record's own (`domain`, RedPajama's `red_pajama_subset`), else the first
    folder below the input, else the input's own name.

    Args:
        inputs: paths of files and folders.
        leave_out: a folder to pass over, because the result is written there.
        say: called with one line that counts and names what is left out of the folders.

    Raises:
        DataError: if there is nothing to read, or a file that was named is of an unknown kind.
    """
    files: list[InputFile] = []
    left_out: list[LeftOut] = []
    for item in inputs:
        if not item:
            raise DataError("an input is empty; must be a file or a folder, . for the current one")
        name, equals, rest = item.partition("=")
        is_named = bool(equals) and not os.path.exists(item)  # a file's own name may hold an equals sign
        domain, root = (name, Path(rest)) if is_named else (None, Path(item))
        if not os.path.exists(root) or (is_named and not rest):
            raise DataError(f"{root}: no such file or folder")
        if root.is_dir():
            paths = _list_folder(root, leave_out, left_out)
            files += [InputFile(path, domain, _folder_domain(path, root)) for path in paths]
            continue
        if not SUFFIX.search(root.name):
            raise DataError(f"{root}: unknown kind; must end in {KINDS}")
        if not root.is_file():
            raise DataError(f"{root}: not a file")
        files.append(InputFile(root, domain, SUFFIX.sub("", root.name) or root.name))
    if left_out:
        say(_describe(left_out))
    return files


def _list_folder(root: Path, leave_out: Path | None, left_out: list[LeftOut]) -> list[Path]:
    """List the files of a folder in sorted order; what is not read is added to `left_out`."""
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
    names = ", ".join(f"{entry.path} ({entry.reason})" for entry in left_out[:_NUM_NAMED])
    more = f" and {len(left_out) - _NUM_NAMED} more" if len(left_out) > _NUM_NAMED else ""
    return f"left out {len(left_out)}: {names}{more}"


def _walk(root: Path, leave_out: Path | None) -> Iterator[Path | LeftOut]:
    """Give the files of a folder and of those below it, and the entries that are not read.

    Each real folder is read once, which ends circles of links.
    """
    output = os.path.realpath(leave_out) if leave_out is not None else None
    visited: set[str] = set()
    waiting = [root]  # linked folders wait, so that a folder that a link also leads to keeps its own name
    while waiting:
        folder = waiting.pop(0)
        if folder != root and os.path.realpath(folder) in visited:
            yield LeftOut(str(folder), "links to a folder that is read already")
            continue
        for entry in _scan(folder, output, visited):
            if isinstance(entry, Path) and entry.is_dir():
                waiting.append(entry)
            else:
                yield entry


def _scan(top: Path, output: str | None, visited: set[str]) -> Iterator[Path | LeftOut]:
    """Give the entries of a folder and of those below it; a link to a folder is given, not followed."""
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
            yield from _scan_below(path, output, visited)
        elif not stat.S_ISREG(mode):
            yield LeftOut(str(path), "not a file")
        elif not SUFFIX.search(entry.name):
            yield LeftOut(str(path), "unknown kind")
        else:
            yield path


def _scan_below(path: Path, output: str | None, visited: set[str]) -> Iterator[Path | LeftOut]:
    real = os.path.realpath(path)
    if real == output:
        yield LeftOut(str(path), "the output")
    elif path.is_symlink():
        yield path
    elif real in visited:  # by a link
        yield LeftOut(str(path), "read already through a link")
    else:
        yield from _scan(path, output, visited)


def hash_ends(path: Path) -> str:
    """Hash the first and last 64 KiB of a file, as reading terabytes whole to start would be too slow."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    with file:
        head = file.read(1 << 16)
        file.seek(max(0, path.stat().st_size - (1 << 16)))
        return hashlib.sha256(head + file.read()).hexdigest()[:16]
