"""What the C library is asked: to keep what a step frees, so that the next one faults nothing in."""

import ctypes
from types import SimpleNamespace

import pytest

from hmoe.train.heap import keep_freed_memory


def test_the_c_library_is_asked_to_keep_freed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    library = SimpleNamespace(mallopt=lambda option, value: calls.append((option, value)))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    keep_freed_memory()
    # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h; setting one alone would switch the other's adaption off.
    assert calls == [(-3, 32 << 20), (-1, 512 << 20)]


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    keep_freed_memory()
