"""The rates of a disk."""

from pathlib import Path

import pytest

from hmoe.bench import disk


def test_a_disk_has_rates_and_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_BYTES", 4 << 20)
    monkeypatch.setattr(disk, "_CHUNK_BYTES", 1 << 20)
    rates = disk.measure_disk(tmp_path)
    assert min(rates) > 0
    assert list(tmp_path.iterdir()) == []
