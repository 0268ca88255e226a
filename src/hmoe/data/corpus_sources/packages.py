"""Fetch packages with the ordinary clients of their registries, and unpack them; nothing is installed.

debian   apt-get download, dpkg-deb      as apt is configured on this machine
pypi     pip download, of this Python
npm      npm pack
"""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from hmoe.errors import DataError
from hmoe.storage import hash_file

CLIENTS: dict[str, tuple[str, ...]] = {"debian": ("apt-get", "dpkg-deb"), "pypi": (), "npm": ("npm",)}
_LONGEST_REASON = 300


@dataclass(frozen=True)
class Package:
    """A package of a registry; without a version the one that the registry offers."""

    registry: str
    name: str
    version: str | None = None


@dataclass(frozen=True)
class FetchedPackage:
    """A package that was fetched and unpacked.

    Attributes:
        registry: where it came from.
        name: its name there.
        version: the version that came.
        sha256: of the file that was downloaded.
        folder: where its files lie.
    """

    registry: str
    name: str
    version: str
    sha256: str
    folder: Path


def find_missing_client(registry: str) -> str | None:
    """Return the first program that packages of a registry need and this system lacks; None if it has all."""
    return next((client for client in CLIENTS[registry] if shutil.which(client) is None), None)


def fetch_package(package: Package, folder: Path) -> FetchedPackage:
    """Download a package and unpack it below a folder, which must not hold it yet.

    Raises:
        DataError: if its client fails, with what that says.
    """
    download, unpack = _REGISTRIES[package.registry]
    place = folder / package.name.replace("/", "_")
    files = place / "download"
    files.mkdir(parents=True)
    path = download(package, files)
    unpacked = place / "files"
    unpacked.mkdir()
    try:
        unpack(path, unpacked)
    except (tarfile.TarError, zipfile.BadZipFile) as error:
        raise DataError(f"package {package.name}: {path.name} cannot be unpacked: {error}") from None
    fetched = FetchedPackage(
        package.registry, package.name, _read_version(package, path), hash_file(path), unpacked
    )
    path.unlink()
    return fetched


def _read_version(package: Package, path: Path) -> str:
    """Return the version that a file's name tells: NAME_1%3a2.0-1_all.deb, NAME-1.0-py3-none-any.whl."""
    if package.version is not None:
        return package.version
    return unquote(path.name.split("_" if package.registry == "debian" else "-")[1])


def _download_debian(package: Package, folder: Path) -> Path:
    # apt's own user may not write into a folder of root's, and downloads without one.
    sandbox = ["-o", "APT::Sandbox::User=root"] if os.name == "posix" and os.getuid() == 0 else []
    wanted = package.name if package.version is None else f"{package.name}={package.version}"
    _run_client(package, ["apt-get", "-qq", *sandbox, "download", wanted], folder)
    return _find_file(package, folder, "*.deb")


def _download_pypi(package: Package, folder: Path) -> Path:
    wanted = package.name if package.version is None else f"{package.name}=={package.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    _run_client(package, [*command, "--only-binary", ":all:", "--dest", ".", wanted], folder)
    return _find_file(package, folder, "*.whl")


def _download_npm(package: Package, folder: Path) -> Path:
    wanted = package.name if package.version is None else f"{package.name}@{package.version}"
    _run_client(package, ["npm", "pack", "--loglevel=error", wanted], folder)
    return _find_file(package, folder, "*.tgz")


def _find_file(package: Package, folder: Path, pattern: str) -> Path:
    path = next(iter(folder.glob(pattern)), None)
    if path is None:
        raise DataError(f"package {package.name}: no {pattern} file came")
    return path


def _unpack_debian(path: Path, folder: Path) -> None:
    result = subprocess.run(
        ["dpkg-deb", "-x", str(path), str(folder)], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise tarfile.TarError(_find_reason(result.stderr))


def _unpack_wheel(path: Path, folder: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)


def _unpack_npm(path: Path, folder: Path) -> None:
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")


def _run_client(package: Package, command: Sequence[str], folder: Path) -> None:
    client = command[0] if command[0] != sys.executable else "pip"
    try:
        result = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise DataError(f"package {package.name}: {client} cannot be run: {error.strerror}") from None
    if result.returncode:
        reason = _find_reason(result.stderr)
        hint = " (`apt-get update` renews its list)" if "Unable to locate package" in reason else ""
        raise DataError(f"package {package.name}: {client} cannot download it: {reason}{hint}")


def _find_reason(stderr: str) -> str:
    """Return what a client says of its failure: its first lines that are errors, else its last line."""
    lines = [" ".join(line.split()) for line in stderr.splitlines() if line.strip()]
    marks = ("E: ", "ERROR: ", "npm ERR! ", "npm error ")
    errors = [line.removeprefix(mark).strip() for line in lines for mark in marks if line.startswith(mark)]
    reason = "; ".join(dict.fromkeys(errors[:2])) or (lines or ["no reason given"])[-1]
    return reason[:_LONGEST_REASON]


_REGISTRIES: dict[str, tuple[Callable[[Package, Path], Path], Callable[[Path, Path], None]]] = {
    "debian": (_download_debian, _unpack_debian),
    "pypi": (_download_pypi, _unpack_wheel),
    "npm": (_download_npm, _unpack_npm),
}
