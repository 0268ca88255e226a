from pathlib import Path

import pytest
import yaml

from hmoe.data.corpus_sources import manifest as manifests
from hmoe.data.corpus_sources.manifest import (
    MANIFEST,
    CorpusManifest,
    make_record,
    read_corpus_manifest,
    write_corpus_manifest,
)
from hmoe.data.corpus_sources.packages import FetchedPackage
from hmoe.data.corpus_sources.records import SourceTally
from hmoe.data.corpus_sources.sources import SOURCES
from hmoe.errors import DataError

TALLY = SourceTally(documents=3, bytes=900, sha256="ab", duplicates=1, short=2, beyond_limit=0)
PACKAGES = [FetchedPackage("debian", f"manpages{end}", "6.03-2", "cd", Path()) for end in ("", "-dev")]
OTHER = "format: 2\nlicence: all\nwithout: []\ncomplete: true\nsources: {}\n"
VERSIONS = {"manpages": "6.03-2", "manpages-dev": "6.03-2"}


@pytest.mark.parametrize(
    ("expected", "drift"),
    [
        ({"sha256": "ab", "packages": {}}, ""),
        (
            {"sha256": "x", "packages": VERSIONS},
            "not the expected text: of the same versions of its packages",
        ),
        (
            {"sha256": "x", "packages": VERSIONS | {"manpages-dev": "5.1"}},
            "not the expected text: manpages-dev is 6.03-2, was 5.1",
        ),
        (None, "nothing is expected of it"),
    ],
)
def test_drift_is_of_the_text_and_names_both_versions(expected: dict[str, object] | None, drift: str) -> None:
    known = {} if expected is None else {"man_pages": expected}
    assert make_record(SOURCES["man_pages"], TALLY, PACKAGES, known).drift == drift


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    drifted = make_record(SOURCES["man_pages"], TALLY, PACKAGES, {})
    fitting = make_record(SOURCES["austen"], TALLY, [], {"austen": {"sha256": "ab", "packages": {}}})
    manifest = CorpusManifest("all", ("gcide",), True, {"austen": fitting, "man_pages": drifted})
    assert read_corpus_manifest(tmp_path) is None
    write_corpus_manifest(tmp_path, manifest)
    assert read_corpus_manifest(tmp_path) == manifest
    tree = yaml.safe_load((tmp_path / MANIFEST).read_text())
    assert tree["sources"]["man_pages"]["as_expected"] is False
    assert tree["sources"]["austen"]["as_expected"] is True
    assert tree["sources"]["man_pages"]["packages"][1] == {
        "registry": "debian",
        "name": "manpages-dev",
        "version": "6.03-2",
        "sha256": "cd",
    }


@pytest.mark.parametrize("content", [OTHER, "format: 1\n", "- a", "{", "", "\x00"])
def test_a_damaged_manifest_is_an_error(content: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(DataError, match=r"MANIFEST\.yaml: damaged, or of another version of hmoe; delete "):
        read_corpus_manifest(tmp_path)


def test_something_is_expected_of_every_source() -> None:
    expected = manifests.load_expected()
    assert list(expected) == list(SOURCES)
    for name, source in SOURCES.items():
        assert list(expected[name]["packages"]) == [package.name for package in source.packages]
        assert len(expected[name]["sha256"]) == 64
    assert 150e6 < sum(entry["bytes"] for entry in expected.values()) < 250e6
    permissive = sum(expected[name]["bytes"] for name in SOURCES if SOURCES[name].permissive)
    assert 80e6 < permissive < 120e6
