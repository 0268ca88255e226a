"""Writing files so that a crash leaves the old content or the new, never a part."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from hmoe.errors import ConfigError

_LARGEST_JSON = 1 << 28  # bytes
_BYTE_ORDER_MARKS = (  # of UTF-32 first: its mark begins with that of UTF-16
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


def flush_to_disk(path: Path) -> None:
    """Flush a file or a directory to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def get_cache_folder() -> Path:
    """Return the folder for what can be made again: $XDG_CACHE_HOME/hmoe, or ~/.cache/hmoe."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hmoe"


def check_unused_folder(folder: Path) -> None:
    """Raise ConfigError if a folder that is to be made exists and holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: exists and is not empty; choose another folder")


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write into, which replaces `path` in one rename when the context ends without an error.

    Both the file and the rename are flushed to disk. After an error `path` is as it was, unless it is the
    folder that could not be flushed: then the new content may be lost in a power cut.
    """
    # In the same folder, because a rename does not reach across file systems.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        flush_to_disk(temporary)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.filename not in (None, str(temporary)):
            raise  # of another file, which whoever writes this one reads
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_to_disk(path.parent)  # without it the rename itself may be lost in a power cut


def write_atomic(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one rename, both flushed to disk."""
    with open_atomic(path) as file:
        file.write(content)


def lies_in_memory(folder: Path) -> bool:
    """Return whether a folder's files are kept in memory, as far as the system tells."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return False
    kinds = {place: kind for _, place, kind, *_ in mounts}  # the last one is on top
    path = folder.resolve()
    home = next((each for each in (path, *path.parents) if str(each) in kinds), None)
    return home is not None and kinds[str(home)] in ("tmpfs", "ramfs")


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no JSON, or larger or nested deeper than a file of ours ever is.
    """
    if path.stat().st_size > _LARGEST_JSON:
        raise ValueError(f"larger than {_LARGEST_JSON} bytes")
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("nested too deep") from None


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_encoding(head: bytes) -> str | None:
    """Return the encoding that the first bytes of a text show, UTF-16 or UTF-32; None for any other."""
    for mark, name in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return name
    # Without a mark: in UTF-16 text of any European language every second byte is zero.
    even, odd = head[:4096:2].count(0), head[1:4096:2].count(0)
    half = min(len(head), 4096) // 2
    if half >= 2 and max(even, odd) / half > 0.7 and min(even, odd) < 0.3 * half:
        return "UTF-16BE" if even > odd else "UTF-16LE"
    return "UTF-32" if half >= 4 and 1.4 * half < even + odd < 1.6 * half else None


def lock_file(file: IO[Any], wait: bool = False) -> bool:
    """Lock an open file until it is closed or the process ends; False if another process holds it.

    Raises:
        ConfigError: on a system or a file system that has no such locks.
    """
    try:
        import fcntl  # noqa: PLC0415 - Windows has none
    except ImportError:
        raise ConfigError(
            "this system cannot lock files (Python has no fcntl): run folders need Linux or "
            "a system like it; on Windows use WSL"
        ) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        raise ConfigError(f"{file.name}: cannot be locked: {error.strerror}") from None
    return True


def has_utf8_name(path: Path) -> bool:
    """Return whether a file's name is UTF-8; Python holds bytes of other encodings as half characters."""
    return not any("\ud800" <= c <= "\udfff" for c in str(path))


@contextlib.contextmanager
def open_utf8_name(path: Path) -> Iterator[str]:
    """Give an existing file a name in UTF-8, as libraries in Rust demand, while the context is open."""
    name = str(path)
    if has_utf8_name(path):
        yield name
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield f"/dev/fd/{descriptor}"
    finally:
        os.close(descriptor)
