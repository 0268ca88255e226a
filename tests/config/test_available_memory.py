"""Memory that is available, from files as Linux writes them."""

from pathlib import Path

import pytest

from hmoe.config import available_memory
from hmoe.config.available_memory import read_available_bytes, read_limit_bytes, release_free_memory
from hmoe.config.memory import read_host

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
    monkeypatch.setattr(available_memory, "_OWN_GROUPS", tmp_path / "none")
    assert read_available_bytes() == expected


def test_the_tightest_group_around_a_process_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of version 1 and of version 2, where a group lies in another; without a limit version 1 says almost 2**63."""
    (tmp_path / "meminfo").write_text(MACHINE)
    (tmp_path / "own").write_text("4:cpu,memory:/outer/inner\n1:name=systemd:/\n0::/slice/unit\n")
    monkeypatch.setattr(available_memory, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(available_memory, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(available_memory, "_GROUP", tmp_path)

    def write_old(group: str, limit: int) -> None:
        folder = tmp_path / "memory" / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (folder / "memory.usage_in_bytes").write_text("700000\n")
        (folder / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 400000\n")

    assert read_limit_bytes() is None
    write_old("outer/inner", 2**63 - 4096)
    assert (read_limit_bytes(), read_available_bytes()) == (None, 2_048_000)
    write_old("outer", 1_600_000)
    assert (read_limit_bytes(), read_available_bytes()) == (1_600_000, 1_300_000)
    write_old("elsewhere", 10)
    assert read_limit_bytes() == 1_600_000
    unit = tmp_path / "slice" / "unit"
    unit.mkdir(parents=True)
    for name, text in (("max", "1200000"), ("current", "100000"), ("stat", "inactive_file 0")):
        (unit / f"memory.{name}").write_text(f"{text}\n")
    assert (read_limit_bytes(), read_available_bytes()) == (1_200_000, 1_100_000)
    monkeypatch.setattr("hmoe.config.memory.read_limit_bytes", read_limit_bytes)
    assert read_host().memory_bytes == 1_200_000


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
