"""Matrices outside of memory: what was written is what is read, and a full disk is told at once."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from hmoe.errors import CheckpointError, ConfigError
from hmoe.parallel.expert_storage import ALIGNMENT, FileStorage, HostStorage, allocate_like_slice

SHAPES = ((3, 5), (0, 5), (1000, 7), (1, 1))


@pytest.mark.parametrize("kind", ["file", "host"])
def test_numbers_come_back_from_where_they_were_put(kind: str, tmp_path: Path) -> None:
    storage = (
        FileStorage(tmp_path, SHAPES, torch.float32)
        if kind == "file"
        else HostStorage(SHAPES, torch.float32, False)
    )
    assert [tuple(m.whole.shape) for m in storage.matrices] == list(SHAPES)
    assert all(not m.whole.any() for m in storage.matrices)
    matrix = storage.matrices[2]
    values = torch.randn(2001)
    matrix.write(13, values)
    back = torch.empty(1999)
    matrix.read(14, back)
    assert torch.equal(back, values[1:-1])
    with storage.look_at_all():
        flat = matrix.whole.view(-1)
        assert torch.equal(flat[13:2014], values)
        assert flat.count_nonzero() == 2001
        flat[0] = 5.0
    first = torch.empty(1)
    matrix.read(0, first)
    assert first == 5
    assert not any(storage.matrices[place].whole.any() for place in (0, 3))
    assert (storage.moved.read_bytes, storage.moved.written_bytes) == (4 * 2000, 4 * 2001)
    storage.close()


def test_the_file_has_no_name_and_is_gone_with_its_handle(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path, SHAPES, torch.float32)
    assert list(tmp_path.iterdir()) == []
    storage.close()
    with pytest.raises(ValueError, match="closed"):
        storage.matrices[0].read(0, torch.empty(1))


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: int, first: int, length: int) -> None:
        assert length >= 4 * 7016
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(
        CheckpointError, match=r"cannot hold the experts: No space left on device \(needs \d+ bytes, \d+"
    ):
        FileStorage(tmp_path, SHAPES, torch.float32)


def test_a_disk_that_fails_later_is_told_with_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = FileStorage(tmp_path, SHAPES, torch.float32)

    def fail(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pwritev", fail)
    with pytest.raises(CheckpointError, match=f"{tmp_path}: .*cannot be written: Input/output error"):
        storage.matrices[0].write(0, torch.ones(2))
    monkeypatch.setattr(os, "preadv", lambda *_: 0)
    with pytest.raises(CheckpointError, match="end early"):
        storage.matrices[0].read(0, torch.ones(2))
    storage.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 100, 100_000])
def test_memory_begins_as_a_slice_of_a_whole_matrix_would(dtype: torch.dtype, count: int) -> None:
    whole = torch.empty(200, dtype=dtype)
    assert whole.data_ptr() % ALIGNMENT == 0
    for first in (0, 1, 7, 16, 33, 199):
        memory = allocate_like_slice(count, dtype, torch.device("cpu"), first)
        assert memory.shape == (count,)
        assert memory.data_ptr() % ALIGNMENT == whole[first:].data_ptr() % ALIGNMENT
        memory.zero_()


def test_looking_at_all_takes_no_memory_for_long(tmp_path: Path) -> None:
    """64 MB that are looked at one after another; what a process has of files in memory stays far below."""
    storage = FileStorage(tmp_path, [(1 << 12, 1 << 12)], torch.float32)

    def measure() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("RssFile:", "RssShmem:")))

    before = measure()
    with storage.look_at_all():
        assert not storage.matrices[0].whole.any()
    assert measure() - before < 16 << 20
    assert not storage.matrices[0].whole.any()
    assert measure() - before > 32 << 20  # without it they stay
    storage.close()


def test_a_host_with_too_little_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hmoe.parallel.expert_storage.read_available_bytes", lambda: 28_000)
    with pytest.raises(
        ConfigError, match=r"the experts need 28064 bytes of the host's memory, 28000 are free"
    ):
        HostStorage(SHAPES, torch.float32, False)
