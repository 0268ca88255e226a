"""Packages are fetched by the clients of their registries: here by programs that stand in for them."""

import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from hmoe.data.corpus_sources.packages import CLIENTS, Package, fetch_package, find_missing_client
from hmoe.errors import DataError
from hmoe.storage import hash_file

UNKNOWN = "E: Unable to locate package nothing"


def write_program(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs before all others, and the archive that they hand out."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "a.txt").write_text("a text")
    with tarfile.open(tmp_path / "archive", "w:gz") as archive:
        archive.add(tmp_path / "package", "package")
    write_program(
        folder,
        "apt-get",
        'test "$LC_ALL" = C || exit 9; for name; do :; done; echo "W: a warning" >&2\n'
        f'test $name != nothing || {{ echo "{UNKNOWN}" >&2; exit 100; }}\n'
        f'cp {tmp_path}/archive "${{name%%=*}}_1%3a2.0-1+deb12u3_all.deb"',
    )
    write_program(folder, "dpkg-deb", 'test "$1" = -x && tar -xzf "$2" -C "$3"')
    write_program(
        folder,
        "npm",
        'test "$3" != broken || { echo "npm ERR! code E404" >&2; echo "npm ERR! 404 Not Found" >&2; '
        'echo "npm ERR! more" >&2; exit 1; }\n'
        f"test $3 = a@0.4.0 && test $1 = pack && cp {tmp_path}/archive a-0.4.0.tgz && echo a-0.4.0.tgz",
    )
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder


def test_a_debian_package_tells_its_version(programs: Path, tmp_path: Path) -> None:
    fetched = fetch_package(Package("debian", "a"), tmp_path / "to")
    assert (fetched.registry, fetched.name, fetched.version) == ("debian", "a", "1:2.0-1+deb12u3")
    assert fetched.sha256 == hash_file(tmp_path / "archive")
    assert (fetched.folder / "package" / "a.txt").read_text() == "a text"
    assert not list((tmp_path / "to").rglob("*.deb"))  # what was unpacked need not stay


def test_npm_packs_the_version_that_is_asked_for(programs: Path, tmp_path: Path) -> None:
    fetched = fetch_package(Package("npm", "a", "0.4.0"), tmp_path / "to")
    assert (fetched.version, (fetched.folder / "package" / "a.txt").read_text()) == ("0.4.0", "a text")


def test_pip_downloads_a_wheel(programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "a_b-1.5-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a/text.md", "a text")
    write_program(
        programs,
        "python",
        'case "$*" in "-m pip download "*" --no-deps --only-binary :all: --dest . a-b")\n'
        f"cp {wheel} .;; *) exit 1;; esac",
    )
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    fetched = fetch_package(Package("pypi", "a-b"), tmp_path / "to")
    assert (fetched.version, fetched.sha256) == ("1.5", hash_file(wheel))
    assert (fetched.folder / "a" / "text.md").read_text() == "a text"


def test_a_client_that_fails_is_quoted(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        DataError, match=r"^package nothing: apt-get cannot download it: Unable to locate package "
    ) as e:
        fetch_package(Package("debian", "nothing"), tmp_path / "a")
    assert str(e.value).endswith("nothing (`apt-get update` renews its list)")
    with pytest.raises(
        DataError, match=r"^package broken: npm cannot download it: code E404; 404 Not Found$"
    ):
        fetch_package(Package("npm", "broken"), tmp_path / "b")
    write_program(programs, "python", 'echo "ERROR: No matching distribution for $*" >&2; exit 1')
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(programs / "python"))
        with pytest.raises(DataError, match=r"^package a: pip cannot download it: No matching .*a==2\.0$"):
            fetch_package(Package("pypi", "a", "2.0"), tmp_path / "e")
    write_program(programs, "apt-get", "true")
    with pytest.raises(DataError, match=r"^package a: no \*\.deb file came$"):
        fetch_package(Package("debian", "a"), tmp_path / "c")
    write_program(programs, "apt-get", "exit 3")
    with pytest.raises(DataError, match=r"^package a: apt-get cannot download it: no reason given$"):
        fetch_package(Package("debian", "a"), tmp_path / "d")


def test_an_archive_that_is_damaged(programs: Path, tmp_path: Path) -> None:
    write_program(programs, "dpkg-deb", 'echo "dpkg-deb: error: not a Debian archive" >&2; exit 2')
    with pytest.raises(
        DataError, match=r"^package a: a_.*\.deb cannot be unpacked: dpkg-deb: error: not a Debian"
    ):
        fetch_package(Package("debian", "a"), tmp_path / "a")
    (tmp_path / "archive").write_bytes(b"x" * 600)
    with pytest.raises(DataError, match=r"^package a: a-0\.4\.0\.tgz cannot be unpacked: "):
        fetch_package(Package("npm", "a", "0.4.0"), tmp_path / "b")


def test_programs_that_are_missing(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [find_missing_client(registry) for registry in CLIENTS] == [None, None, None]
    monkeypatch.setenv("PATH", str(programs))
    (programs / "dpkg-deb").unlink()
    assert [find_missing_client(registry) for registry in CLIENTS] == ["dpkg-deb", None, None]
    (programs / "npm").unlink()
    assert find_missing_client("npm") == "npm"
