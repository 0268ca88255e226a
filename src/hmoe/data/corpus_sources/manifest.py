"""What a corpus folder says of itself: MANIFEST.yaml for programs, LICENCES.md for people.

Neither ends as files of text do that `hmoe data prepare` reads: of .json it would make documents.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from hmoe.data.corpus_sources.packages import FetchedPackage
from hmoe.data.corpus_sources.records import SourceTally
from hmoe.data.corpus_sources.sources import SOURCES, Source
from hmoe.errors import DataError
from hmoe.storage import write_atomic

MANIFEST, LICENCES = "MANIFEST.yaml", "LICENCES.md"
_FORMAT = 1
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # the fast one, where PyYAML has it


@dataclass(frozen=True)
class PackageRecord:
    """A package that a source was made of; `sha256` is that of the file that was downloaded."""

    registry: str
    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class SourceRecord:
    """What a corpus holds of a source; `drift` says how it differs from what is expected, or nothing."""

    tally: SourceTally
    packages: tuple[PackageRecord, ...]
    drift: str


@dataclass(frozen=True)
class CorpusManifest:
    """What a corpus folder holds.

    Attributes:
        licence: which sources were asked for, `permissive` or `all`.
        without: names of sources that were left out of them.
        is_complete: whether every source is there.
        records: by the source's name, in the table's order.
    """

    licence: str
    without: tuple[str, ...] = ()
    is_complete: bool = False
    records: Mapping[str, SourceRecord] = field(default_factory=dict)


def make_record(
    source: Source, tally: SourceTally, fetched: Iterable[FetchedPackage], expected: Mapping[str, Any]
) -> SourceRecord:
    """Return the record of a source that was written, compared with what is expected of it."""
    packages = tuple(
        PackageRecord(package.registry, package.name, package.version, package.sha256) for package in fetched
    )
    return SourceRecord(tally, packages, _describe_drift(tally, packages, expected.get(source.name)))


def _describe_drift(tally: SourceTally, packages: tuple[PackageRecord, ...], expected: Any) -> str:
    if expected is None:
        return "nothing is expected of it"
    if tally.sha256 == expected["sha256"]:
        return ""  # packages may differ in what the corpus does not take
    versions = expected["packages"]
    changes = [
        f"{package.name} is {package.version}, was {versions.get(package.name)}"
        for package in packages
        if package.version != versions.get(package.name)
    ]
    return f"not the expected text: {', '.join(changes) or 'of the same versions of its packages'}"


def load_expected() -> dict[str, Any]:
    """Return what the sources gave when they were last measured, as this package ships it."""
    content = (resources.files(__package__) / "expected.json").read_bytes()
    expected: dict[str, Any] = json.loads(content)
    return expected


def make_expected(manifest: CorpusManifest) -> dict[str, Any]:
    """Return what expected.json is to hold, of a corpus that was looked at."""
    return {
        name: {
            "sha256": record.tally.sha256,
            "documents": record.tally.documents,
            "bytes": record.tally.bytes,
            "packages": {package.name: package.version for package in record.packages},
        }
        for name, record in manifest.records.items()
    }


def write_corpus_manifest(folder: Path, manifest: CorpusManifest) -> None:
    """Write MANIFEST.yaml."""
    tree = {
        "format": _FORMAT,
        "licence": manifest.licence,
        "without": list(manifest.without),
        "complete": manifest.is_complete,
        "sources": {name: _list_fields(SOURCES[name], record) for name, record in manifest.records.items()},
    }
    write_atomic(folder / MANIFEST, yaml.dump(tree, Dumper=_DUMPER, sort_keys=False, width=1000).encode())


def _list_fields(source: Source, record: SourceRecord) -> dict[str, Any]:
    return {
        "file": source.file,
        "domain": source.domain,
        "licence": source.licence,
        "permissive": source.permissive,
        "as_expected": not record.drift,
        **({"drift": record.drift} if record.drift else {}),
        **asdict(record.tally),
        "packages": [asdict(package) for package in record.packages],
    }


def read_corpus_manifest(folder: Path) -> CorpusManifest | None:
    """Read MANIFEST.yaml; None if there is none.

    Raises:
        DataError: if it is damaged, or of another version of hmoe.
    """
    path = folder / MANIFEST
    try:
        tree = yaml.safe_load(path.read_bytes())
        if tree["format"] != _FORMAT:
            raise ValueError
        records = {name: _read_record(tree["sources"][name]) for name in SOURCES if name in tree["sources"]}
        return CorpusManifest(tree["licence"], tuple(tree["without"]), tree["complete"], records)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        raise DataError(
            f"{path}: damaged, or of another version of hmoe; delete {folder} and make it anew"
        ) from None


def _read_record(fields: Mapping[str, Any]) -> SourceRecord:
    tally = SourceTally(**{name: fields[name] for name in SourceTally.__dataclass_fields__})
    packages = tuple(PackageRecord(**package) for package in fields["packages"])
    return SourceRecord(tally, packages, fields.get("drift", ""))


def write_licences(folder: Path, manifest: CorpusManifest) -> None:
    """Write LICENCES.md: whose texts a corpus holds, under which terms, and what was left out."""
    lines = [
        "# Licences of this corpus",
        "",
        "The texts are their authors', under the licences below, which whoever passes them on must keep. They come",
        "from package registries, unchanged but for markup, line ends and blanks. Each package holds its notices in",
        "full: Debian's as `usr/share/doc/PACKAGE/copyright`, the others' as `LICENSE`.",
        "",
        "| source | texts | domain | licence | packages |",
        "|---|---|---|---|---|",
    ]
    for name, record in manifest.records.items():
        source = SOURCES[name]
        packages = ", ".join(
            f"{package.name} {package.version} ({package.registry})" for package in record.packages
        )
        lines.append(f"| {name} | {source.content} | {source.domain} | {source.licence} | {packages} |")
    if manifest.without:
        lines += ["", f"Left out as asked: {', '.join(manifest.without)}."]
    if manifest.licence == "permissive":
        lines += [
            "",
            "Permissive sources only: public domain, CC0, PSF, BSD, MIT, Apache, PostgreSQL and WordNet.",
        ]
    write_atomic(folder / LICENCES, ("\n".join(lines) + "\n").encode())
