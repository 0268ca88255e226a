"""How much of this machine's memory is free for what is about to be allocated, and giving memory back. No torch."""

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_MEMORY = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
_NO_LIMIT = 1 << 60  # what version 1 says where there is none is close to 2**63


def read_available_bytes() -> int | None:
    """Return the bytes that can be allocated without swapping, within a container's limit; None if nobody tells."""
    free = [size for size in (_read_machine(), _read_group()) if size is not None]
    return min(free, default=None)


def _read_machine() -> int | None:
    """Return what Linux takes for available: free, or held by caches that it would give up."""
    try:
        lines = _MEMORY.read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def read_limit_bytes() -> int | None:
    """Return the least memory that a control group around this process may use, None if none has a limit."""
    return min((group.limit for group in _list_groups()), default=None)


def _read_group() -> int | None:
    """Return what is left of the tightest limit of a control group around this process; None without a limit."""
    return min((max(0, group.limit - group.used + group.cached) for group in _list_groups()), default=None)


class _Group(NamedTuple):
    """A control group with a limit of memory: bytes that it may use, uses, and would give up of these."""

    limit: int
    used: int
    cached: int


def _list_groups() -> Iterator[_Group]:
    """Yield the control groups around this process that have a limit, of version 2 and of version 1."""
    for folder, (limit, used, cached) in _list_group_folders():
        try:
            limit_bytes, used_bytes = (int((folder / name).read_text()) for name in (limit, used))
            lines = (folder / "memory.stat").read_text().splitlines()
            cached_bytes = sum(int(line.split()[1]) for line in lines if line.startswith(f"{cached} "))
        except (OSError, ValueError, IndexError):  # no such group, or without a limit
            continue
        if limit_bytes < _NO_LIMIT:
            yield _Group(limit_bytes, used_bytes, cached_bytes)


def _list_group_folders() -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Yield the folders that groups may have, innermost first, and the names of what is read in them."""
    try:
        lines = [line.split(":", 2) for line in _OWN_GROUPS.read_text().splitlines()]
    except OSError:
        lines = []
    paths = [(kind, path) for _, kind, path in (line for line in lines if len(line) == 3)]
    # In a container the group's own folder is mounted where all would be.
    for kind, path in [*paths, ("", "/"), ("memory", "/")]:
        if kind == "":
            root, names = _GROUP, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in kind.split(","):
            root = _GROUP / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        inner = Path(path.lstrip("/"))
        for folder in (inner, *inner.parents):
            yield root / folder, names


def release_free_memory() -> None:
    """Give memory that is free, but lies between what is in use, back to the system.

    The GNU C library keeps it for the process: where large and small blocks come and go by turns, it fits ever less
    well, and the process grows though it holds no more. Other C libraries have no such call, and nothing is done.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim(0)
