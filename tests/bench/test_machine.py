"""`hmoe bench machine`: what it measures can be planned with."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hmoe.bench import link as bench_link
from hmoe.bench import machine
from hmoe.bench.link import Extra, solve_link
from hmoe.bench.measure import BenchOptions, Timing
from hmoe.cli.main import run_command_line
from hmoe.config.hardware import Hardware, read_hardware
from hmoe.config.run import RunConfig
from hmoe.config.step_time import simulate_step
from hmoe.parallel.workers import ONE_WORKER, Workers


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "WIDTHS", {"cpu": (16, 32, 64)})
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
    for rate in (
        hardware.attention_flops,
        hardware.scores_flops,
        hardware.experts_flops,
        hardware.head_flops,
    ):
        assert isinstance(rate, dict)
        assert set(rate) == {16, 32, 64}
        assert all(1e6 < value < 1e14 for value in rate.values())
    assert run_command_line(["plan", "tiny", "--hardware", str(file), "--json"]) == 0
    step = json.loads(capsys.readouterr().out)["step"]
    assert 1e-4 < step["seconds"] < 1e3


def test_a_simulated_step_of_a_measured_shape_takes_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rates are fitted so that parts and rest add up to the step: planted times come back."""
    parts = {
        "attention": 0.5,
        "scores": 0.2,  # in those of attention
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
            return machine._Measured(config, 0.3, {"all": 0.1, "scores": 0.05})
        if config.model.moe is None:
            return machine._Measured(
                config, 1.2, {"dense feed-forward": 0.25, "all else": 0.25, "scores": 0.1}
            )
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
    shorter = config.model_copy(update={"data": config.data.model_copy(update={"sequence_length": 64})})
    assert config.data.sequence_length == 128
    assert simulate_step(shorter, hardware, 1).by_part["attention"] == pytest.approx(0.3 + 0.2 / 2)


@pytest.mark.parametrize("sharing_seconds", [0.0, 0.01])
def test_the_link_is_what_simulated_steps_with_others_take_longer(
    sharing_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of a planted machine are simulated instead of measured, and its link comes back."""
    planted = {"gather_bytes_per_second": 1e9, "reduce_bytes_per_second": 5e8, "latency_seconds": 0.002}
    rates = dict.fromkeys(
        ("attention_flops", "scores_flops", "experts_flops", "ffn_flops", "head_flops"), 1e11
    )
    hardware = Hardware.model_validate({
        **rates, "device": "cpu", "memory_bytes": 10**9, "processes_per_node": 2, "peak_flops": 1e11, "overlap": 0.0,
        "elementwise_bytes_per_second": 1e10, "optimizer_bytes_per_second": 3e10, "node": planted,
        "sharing_seconds": sharing_seconds,
    })  # fmt: skip

    class Step:
        """A simulated step, of one of two processes or of one that is alone."""

        def __init__(self, config: RunConfig, device: str, workers: Workers) -> None:
            self.config, self.size = config, workers.size

        def alone(self, workers: Workers) -> "Step":
            data = self.config.data.model_copy(update={"batch_tokens": 32, "micro_batches": 1})
            return Step(self.config.model_copy(update={"data": data}), "cpu", ONE_WORKER)

    def time_steps(runs: dict[str, Step], rounds: int, warm: int, device: str) -> dict[str, list[Timing]]:
        times = {name: simulate_step(run.config, hardware, run.size).seconds for name, run in runs.items()}
        return {name: [Timing(seconds, seconds)] * rounds for name, seconds in times.items()}

    monkeypatch.setattr(bench_link, "Training", Step)
    monkeypatch.setattr(bench_link, "make_own_part", Step.alone)
    monkeypatch.setattr(bench_link, "time_interleaved", time_steps)
    workers: Any = SimpleNamespace(rank=0, size=2, gather_values=lambda value: [value, value])
    link = machine._measure_link(BenchOptions(workers=workers), 3e10)
    assert link["latency_seconds"] == pytest.approx(0.002)
    assert link["sharing_seconds"] == pytest.approx(sharing_seconds, abs=1e-9)
    for direction, rate in (("gather", 1e9), ("reduce", 5e8)):
        rates = link[f"{direction}_bytes_per_second"]
        assert len(rates) == 2
        assert list(rates.values()) == pytest.approx([rate, rate])


def test_a_link_of_noise_alone_is_still_a_link() -> None:
    noise = [Extra(-0.1, -0.3, 1e5, 4e4), Extra(-0.2, -0.3, 4e5, 4e4), Extra(-0.1, -0.3, 5e7, 2.4e7)]
    link = solve_link(*noise[:2], noise[2:], 2)
    assert (link["latency_seconds"], link["sharing_seconds"]) == (0, 0)
    for direction in ("gather", "reduce"):
        assert all(rate > 1e11 for rate in link[f"{direction}_bytes_per_second"].values())


def test_two_processes_measure_what_they_take_from_each_other(tmp_path: Path) -> None:
    file = tmp_path / "machine.yaml"
    script = (
        "import sys; from hmoe.bench import machine; "
        "machine.WIDTHS['cpu'], machine._TOKENS['cpu'] = (16, 32, 64), 512; "
        "from hmoe.cli.main import run_command_line; sys.exit(run_command_line(sys.argv[1:]))"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1",
    }
    words = [sys.executable, "-c", script, "bench", "machine", "--rounds", "3", "--out", str(file)]
    processes = [subprocess.Popen(words, env={**shared, "RANK": str(rank)}) for rank in (1, 0)]
    assert [process.wait(120) for process in processes] == [0, 0]
    hardware = read_hardware(str(file))
    assert hardware.processes_per_node == 2
    for rates in (hardware.node.gather_bytes_per_second, hardware.node.reduce_bytes_per_second):
        assert isinstance(rates, dict)
        assert all(rate > 1e3 for rate in rates.values())
    assert 0 <= hardware.node.latency_seconds < 10
