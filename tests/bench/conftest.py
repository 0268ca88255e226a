"""What several tests of `hmoe bench` need."""

import pytest

from hmoe.bench import layer


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's limits take a gigabyte and seconds; here only their use is tested."""
    monkeypatch.setattr(layer, "measure_read_bandwidth", lambda device: 1e10)
    monkeypatch.setattr(layer, "measure_peak_flops", lambda dtype, device: 1e11)
    monkeypatch.setattr("hmoe.bench.decode.measure_read_bandwidth", lambda device: 1e10)
