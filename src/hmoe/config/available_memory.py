"""How much of this machine's memory is free for what is about to be allocated, and giving memory back. No torch."""

import ctypes
from pathlib import Path

_MEMORY = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")


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


def _read_group() -> int | None:
    """Return what is left of a container's limit (control groups, version 2); None without a limit."""
    try:
        limit, used = ((_GROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        if limit == "max":
            return None
        lines = (_GROUP / "memory.stat").read_text().splitlines()
        cached = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
        return max(0, int(limit) - int(used) + cached)
    except (OSError, ValueError, IndexError):
        return None


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
