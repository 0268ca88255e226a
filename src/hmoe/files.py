"""Writing files so that a crash leaves the old content or the new, never a part."""

import hashlib
import os
from pathlib import Path

from hmoe.errors import ConfigError


def fsync(path: Path) -> None:
    """Flush a file or a directory to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def cache_folder() -> Path:
    """Where what can be made again is kept: $XDG_CACHE_HOME/hmoe, ~/.cache/hmoe."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hmoe"


def refuse_used(folder: Path) -> None:
    """Raise ConfigError if a folder that is to be made exists and holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: exists and is not empty; choose another folder")


def write_atomic(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one rename, both flushed to disk."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    fsync(temporary)
    temporary.replace(path)
    fsync(path.parent)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
