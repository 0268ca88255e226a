"""`hmoe bench machine`: what it measures can be planned with."""

import json
from pathlib import Path

import pytest

from hmoe.bench import machine
from hmoe.bench.measure import BenchOptions
from hmoe.cli.main import run_command_line
from hmoe.config.hardware import read_hardware
from hmoe.config.run import RunConfig


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "WIDTHS", {"cpu": (16, 64)})
    monkeypatch.setattr(machine, "_TOKENS", {"cpu": 256})


def test_what_is_measured_is_a_machine_to_plan_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "machine.yaml"
    assert run_command_line(["bench", "machine", "--rounds", "3", "--out", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("width 16, experts, 256 tokens: step ")
    assert lines[-1] == f"  hmoe plan tiny --hardware {file}"
    assert file.read_text().startswith("# Measured by `hmoe bench machine`, 1 processes at once, 20")
    hardware = read_hardware(str(file))
    assert (hardware.device, hardware.processes_per_node, hardware.overlap) == ("cpu", 1, 0.0)
    for rate in (hardware.attention_flops, hardware.experts_flops, hardware.head_flops):
        assert isinstance(rate, dict)
        assert set(rate) == {16, 64}
        assert all(1e6 < value < 1e14 for value in rate.values())
    assert run_command_line(["plan", "tiny", "--hardware", str(file), "--json"]) == 0
    step = json.loads(capsys.readouterr().out)["step"]
    assert 1e-4 < step["seconds"] < 1e3


def test_a_simulated_step_of_a_measured_shape_takes_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rates are fitted so that parts and rest add up to the step: planted times come back."""
    from hmoe.config.step_time import simulate_step

    parts = {
        "attention": 0.5,
        "experts": 0.7,
        "head and loss": 0.2,
        "optimiser": 0.1,
        "norms and residuals": 0.2,
        "router": 0.1,
    }
    config = machine.make_training_recipe(64, 256, "cpu")

    dense = machine.make_training_recipe(64, 256, "cpu", is_sparse=False)

    def measure(config: RunConfig, options: BenchOptions) -> machine._Measured:
        if config.data.batch_tokens < 256:
            return machine._Measured(config, 0.3, {"all": 0.1})
        if config.model.moe is None:
            return machine._Measured(config, 1.2, {"dense feed-forward": 0.25, "all else": 0.25})
        return machine._Measured(config, 2.0, parts)

    monkeypatch.setattr(machine, "_measure", measure)
    hardware = machine.measure_machine(BenchOptions(rounds=3), tmp_path / "machine.yaml")
    step = simulate_step(config, hardware, 1)
    assert step.seconds == pytest.approx(2.0)
    # 0.2 s are fixed, and the parts, 1.8 s by themselves, share the other 1.8.
    assert step.by_part["overhead"] == pytest.approx(0.2)
    assert step.by_part["attention"] == pytest.approx(0.5)
    assert step.by_part["experts"] == pytest.approx(0.7)
    assert step.by_part["norms, residuals, routing"] == pytest.approx(0.3)
    assert step.by_part["head and loss"] == pytest.approx(0.2)
    assert step.by_part["optimizer"] == pytest.approx(0.1)
    assert simulate_step(dense, hardware, 1).by_part["feed-forward"] == pytest.approx(0.5)
