"""How fast the disk of a folder is, beyond what the system keeps of files in memory."""

import os
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

_BYTES = 256 << 20
_CHUNK_BYTES = 16 << 20


class DiskRates(NamedTuple):
    """Bytes per second, one after another."""

    read: float
    write: float


def measure_disk(folder: Path) -> DiskRates:
    """Write a file of 256 MB and read it again, once; it is gone afterwards."""
    chunk = bytearray(os.urandom(_CHUNK_BYTES))
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        handle = file.fileno()
        os.posix_fallocate(handle, 0, _BYTES)
        begun = time.perf_counter()
        for first in range(0, _BYTES, _CHUNK_BYTES):
            os.pwrite(handle, chunk, first)
        os.fsync(handle)
        written = time.perf_counter()
        os.posix_fadvise(handle, 0, _BYTES, os.POSIX_FADV_DONTNEED)  # else it would be read from memory
        dropped = time.perf_counter()
        for first in range(0, _BYTES, _CHUNK_BYTES):
            os.preadv(handle, [chunk], first)
        read = time.perf_counter()
    return DiskRates(_BYTES / (read - dropped), _BYTES / (written - begun))
