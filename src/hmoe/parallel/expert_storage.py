"""Matrices that lie outside of the device's memory, in a file or in the host's memory; rows of them in and out."""

import contextlib
import math
import mmap
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from hmoe.config.available_memory import read_available_bytes
from hmoe.errors import CheckpointError, ConfigError

_PAGE_BYTES = 4096
_MAPPED_BYTES = 1 << 18  # of a buffer from which on it is given back to the system as soon as it is free
_RELEASE_SECONDS = 0.02  # between moments at which memory is given back
ALIGNMENT = 64  # bytes, of PyTorch's allocator on a CPU


@dataclass
class Moved:
    """Bytes that were read from storage and written to it."""

    read_bytes: int = 0
    written_bytes: int = 0


class StoredMatrix(Protocol):
    """A matrix in storage.

    Attributes:
        whole: all of it as a tensor on the CPU, for those who go through it once; what it shows is what was written.
    """

    whole: torch.Tensor

    def read(self, first: int, out: torch.Tensor) -> None:
        """Fill a flat tensor with the numbers from the first on, counted row by row."""
        ...

    def write(self, first: int, values: torch.Tensor) -> None:
        """Put the numbers of a flat tensor in the place of those from the first on."""
        ...


class ExpertStorage(Protocol):
    """Memory outside of the device for matrices whose shapes are known beforehand; all begin as zeros.

    Attributes:
        matrices: in the order of their shapes.
        moved: what went in and out.
        folder: where the file is; None: it is in the host's memory.
    """

    matrices: Sequence[StoredMatrix]
    moved: Moved
    folder: Path | None

    def look_at_all(self) -> contextlib.AbstractContextManager[None]:
        """Give a context in which whole matrices may be looked at."""
        ...

    def close(self) -> None:
        """Give up the matrices; nothing may be read or written any more."""
        ...


class FileStorage:
    """Matrices in one file without a name, which is gone with the process, however that ends.

    All of its space is taken when it is made: a disk that is full later does no harm.

    Args:
        folder: where the file is.
        shapes, dtype: of the matrices.

    Raises:
        CheckpointError: if the disk has too little space.
    """

    def __init__(self, folder: Path, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> None:
        sizes = [math.prod(shape) * dtype.itemsize for shape in shapes]
        begins, total = [], 0
        for size in sizes:  # each on a page of its own: rows then lie as in a tensor of its own
            begins.append(total)
            total += -(-size // _PAGE_BYTES) * _PAGE_BYTES
        self.moved = Moved()
        self.folder: Path | None = folder
        with contextlib.ExitStack() as opened:
            try:
                self._file = opened.enter_context(tempfile.TemporaryFile(dir=folder, buffering=0))
                os.posix_fallocate(self._file.fileno(), 0, max(total, 1))
                self._map = mmap.mmap(self._file.fileno(), max(total, 1))
            except OSError as error:
                raise CheckpointError(
                    f"{folder}: cannot hold the experts: {error.strerror} (needs {total} bytes, "
                    f"{_measure_free(folder)} bytes free)"
                ) from None
            opened.pop_all()  # closed by `close`
        self.matrices: Sequence[StoredMatrix] = [
            _FileMatrix(self, begin, self._view(begin, shape, dtype))
            for shape, begin in zip(shapes, begins, strict=True)
        ]

    def _view(self, first_byte: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        count = math.prod(shape)
        if not count:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=first_byte).view(shape)

    @contextlib.contextmanager
    def look_at_all(self) -> Iterator[None]:
        """Give a context in which whole matrices may be looked at; the memory that it takes is given back meanwhile."""
        ends = threading.Event()

        def release() -> None:
            while not ends.wait(_RELEASE_SECONDS):
                self._map.madvise(mmap.MADV_DONTNEED)  # what the file holds comes back when it is looked at

        thread = threading.Thread(target=release, name="hmoe-pages", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ends.set()
            thread.join()
            self._map.madvise(mmap.MADV_DONTNEED)

    def transfer(self, first_byte: int, values: torch.Tensor, writes: bool) -> None:
        """Read or write the bytes of a tensor on the CPU."""
        left = memoryview(values.view(torch.uint8).numpy())  # type: ignore[arg-type]
        counted = "written_bytes" if writes else "read_bytes"
        setattr(self.moved, counted, getattr(self.moved, counted) + len(left))
        move = os.pwritev if writes else os.preadv
        while left:
            try:
                done = move(self._file.fileno(), [left], first_byte)
            except OSError as error:
                verb = "written" if writes else "read"
                raise CheckpointError(
                    f"{self.folder}: experts outside of memory cannot be {verb}: {error.strerror}"
                ) from None
            if not done:
                raise CheckpointError(
                    f"{self.folder}: experts outside of memory end early; was the file cut?"
                )
            left, first_byte = left[done:], first_byte + done

    def close(self) -> None:
        """Give up the file; views of whole matrices stay as they are until they are gone."""
        self._file.close()


class _FileMatrix:
    def __init__(self, storage: FileStorage, first_byte: int, whole: torch.Tensor) -> None:
        self.whole, self._storage, self._first_byte = whole, storage, first_byte

    def read(self, first: int, out: torch.Tensor) -> None:
        place = self._first_byte + first * self.whole.itemsize
        if out.device.type == "cpu":
            self._storage.transfer(place, out, writes=False)
            return
        staged = torch.empty(out.shape, dtype=out.dtype, pin_memory=True)
        self._storage.transfer(place, staged, writes=False)
        out.copy_(staged)

    def write(self, first: int, values: torch.Tensor) -> None:
        place = self._first_byte + first * self.whole.itemsize
        self._storage.transfer(place, values.cpu(), writes=True)


class HostStorage:
    """Matrices in the host's memory, from where a GPU copies fastest.

    Args:
        shapes, dtype: of the matrices.
        pinned: whether the system may not move them; needs a GPU.

    Raises:
        ConfigError: if the host has too little memory.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, pinned: bool) -> None:
        self.moved = Moved()
        self.folder: Path | None = None
        needed, free = sum(map(math.prod, shapes)) * dtype.itemsize, read_available_bytes()
        if free is not None and needed > free:
            raise ConfigError(
                f"offload: the experts need {needed} bytes of the host's memory, {free} are free; nearest is a folder "
                "on disk"
            )
        wholes = [torch.zeros(shape, dtype=dtype) for shape in shapes]
        self._pinned = [whole for whole in wholes if pinned and whole.numel()]
        for whole in self._pinned:
            _pin(whole)
        self.matrices: Sequence[StoredMatrix] = [_HostMatrix(self.moved, whole) for whole in wholes]

    def look_at_all(self) -> contextlib.AbstractContextManager[None]:
        """Give a context that does nothing: this is their memory."""
        return contextlib.nullcontext()

    def close(self) -> None:
        """Let the system move the memory again; it is freed with the matrices."""
        for whole in self._pinned:
            _ask_cuda().cudaHostUnregister(whole.data_ptr())
        self._pinned = []


class _HostMatrix:
    def __init__(self, moved: Moved, whole: torch.Tensor) -> None:
        self.whole, self._moved = whole, moved
        self._flat = whole.view(-1)

    def read(self, first: int, out: torch.Tensor) -> None:
        out.copy_(self._flat[first : first + len(out)], non_blocking=True)
        self._moved.read_bytes += out.nbytes

    def write(self, first: int, values: torch.Tensor) -> None:
        self._flat[first : first + len(values)].copy_(values, non_blocking=True)
        self._moved.written_bytes += values.nbytes


def allocate_like_slice(count: int, dtype: torch.dtype, device: torch.device, first: int = 0) -> torch.Tensor:
    """Return a flat tensor that begins as far from a multiple of ALIGNMENT as number `first` of a tensor does.

    Libraries may round a product otherwise at another address.
    """
    size, step = dtype.itemsize, ALIGNMENT // dtype.itemsize
    skip = first % step
    if device.type == "cpu" and count * size >= _MAPPED_BYTES:
        # Not from the C library's heap, where blocks of many sizes that come and go leave gaps.
        memory = mmap.mmap(-1, (count + skip) * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return torch.frombuffer(memory, dtype=dtype)[skip:]
    return torch.empty(count + skip, dtype=dtype, device=device)[skip:]


def _ask_cuda() -> Any:
    cuda: Any = torch.cuda
    return cuda.cudart()


def _pin(tensor: torch.Tensor) -> None:
    """Keep the system from moving a tensor's memory; PyTorch's own pinned memory is up to twice as large."""
    code = int(_ask_cuda().cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0))
    if code:
        raise ConfigError(
            f"offload: {tensor.nbytes} bytes of the host's memory cannot be pinned (CUDA error {code}); nearest is a "
            "folder on disk"
        )


def _measure_free(folder: Path) -> int | str:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return "no"
