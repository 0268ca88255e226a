"""Memory that is available, from files as Linux writes them."""

from pathlib import Path

import pytest

from hmoe.config import available_memory
from hmoe.config.available_memory import read_available_bytes, release_free_memory

MACHINE = "MemTotal:       24684092 kB\nMemFree:        1000 kB\nMemAvailable:   2000 kB\n"


@pytest.mark.parametrize(
    ("machine", "limit", "expected"),
    [
        (MACHINE, None, 2_048_000),
        (MACHINE, "max", 2_048_000),
        (MACHINE, "1500000", 1_200_000),  # 400,000 of 700,000 are caches
        (MACHINE, "100000", 0),
        ("MemTotal: 5 kB\n", "1500000", 1_200_000),
        ("", None, None),
    ],
)
def test_the_smaller_of_machine_and_container_is_available(
    machine: str, limit: str | None, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text(machine)
    if limit is not None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text("700000\n")
        (tmp_path / "memory.stat").write_text("anon 300000\ninactive_file 400000\n")
    monkeypatch.setattr(available_memory, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(available_memory, "_GROUP", tmp_path)
    assert read_available_bytes() == expected


def test_libraries_without_the_call_release_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    class Library:
        def malloc_trim(self, kept: int) -> None:
            calls.append(kept)

    monkeypatch.setattr("ctypes.CDLL", lambda name: Library())
    release_free_memory()
    assert calls == [0]
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    release_free_memory()
    assert calls == [0]
