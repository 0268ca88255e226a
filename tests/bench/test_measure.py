"""The order of measurements, and the limits of the machine; no time is asserted."""

import pytest
import torch

from hmoe.bench import measure


def test_runs_are_interleaved_and_take_every_place() -> None:
    order: list[str] = []
    times = measure.time_interleaved(
        {name: lambda name=name: order.append(name) for name in "abc"}, 2, 1, "cpu"
    )
    assert order == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert all(len(t) == 2 for t in times.values())


def test_bfloat16_is_the_default_only_where_the_hardware_multiplies_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An old processor emulates it, a thousand times slower."""
    for hardware, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(
            torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda supported=hardware: supported
        )
        assert measure.choose_default_dtype("cpu") == expected
        assert measure.choose_default_dtype("cuda") == "bfloat16"


def test_the_machines_limit_is_taken_from_a_product_that_it_can_finish(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(measure, "time_fastest", lambda run, device: sizes.append(len(run.args[0])) or 1.0)
    for seconds, size in ((0.001, 2048), (1.0, 512)):
        monkeypatch.setattr(measure, "time_call", lambda run, device, s=seconds: measure.Timing(s, s))
        assert measure.measure_peak_flops(torch.float32, "cpu") == 2 * size**3
        assert sizes.pop() == size
