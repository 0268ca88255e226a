"""`make gpu` without a GPU: the same code, tiny, in the interpreter; what fails or hangs costs only itself."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hmoe.bench.shapes import LayerShape

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu import __main__ as command  # noqa: E402
from benchmarks.gpu import facts, kernels, races  # noqa: E402
from benchmarks.gpu.setting import LOST, Case, Outcome, Setting, read_records, run_cases  # noqa: E402
from hmoe.kernels.ragged.shapes import LAUNCHES  # noqa: E402


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(0, True, 60.0, tmp_path, time.monotonic())


def test_the_command_writes_one_file_with_the_kernels_hash(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--stages", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OUT": str(tmp_path)}
    result = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = tmp_path.glob("*.json")
    cases = {case["case"]: case for case in json.loads(path.read_text())["cases"]}
    assert {case["state"] for case in cases.values()} == {"done"}
    assert cases["machine"]["data"]["kernel_sources"] == facts.hash_sources()
    assert "0 machine: torch=" in result.stdout


def test_what_fails_costs_only_itself_and_a_lost_device_only_its_process(setting: Setting) -> None:
    calls: list[str] = []

    def case(name: str, error: str = "") -> Case:
        def run() -> Outcome:
            calls.append(name)
            if error:
                raise RuntimeError(error)
            return "fine", {"name": name}

        return run

    cases = {
        "a": case("a"),
        "b": case("b", "not right\nat all"),
        "c": case("c", "CUDA error: misaligned"),
        "d": case("d"),
    }
    assert run_cases(setting, cases) == LOST
    assert run_cases(setting, cases) == 0
    assert calls == ["a", "b", "c", "d"]
    ends = command.last_records(setting.journal)
    assert [end["state"] for end in ends] == ["done", "failed", "failed", "done"]
    assert (
        ends[1]["line"].startswith("RuntimeError at test_gpu_script.py:")
        or "not right at all" in ends[1]["line"]
    )
    assert "Traceback" in ends[1]["data"]["traceback"]


def test_a_case_without_time_is_said_to_have_none(tmp_path: Path) -> None:
    setting = Setting(4, True, 1.0, tmp_path, time.monotonic())
    assert run_cases(setting, {"a": lambda: ("fine", None)}) == 0
    assert [record["state"] for record in read_records(setting.journal)] == ["no time"]


def test_a_case_that_hung_is_named(tmp_path: Path) -> None:
    lines = [
        {"stage": 0, "case": "a", "state": state, "line": "", "data": None} for state in ("begun", "done")
    ]
    lines.append({**lines[0], "case": "b"})
    (tmp_path / "gpu.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = command.format_summary({0: ("time limit", 30.0)}, command.last_records(tmp_path / "gpu.jsonl"))
    assert "BEGUN 0 b: " in table
    assert table[1].split() == ["0", "facts", "30", "1", "0", "1", "time", "limit"]


def test_stage_four_gives_way_and_no_stage_exceeds_what_is_left() -> None:
    every = list(range(8))
    after = sum(seconds for _, seconds in command.STAGES[5:])
    assert command.limit_seconds(4, every, after + 40) == 40
    assert command.limit_seconds(4, every, after + 1000) == command.STAGES[4][1]
    assert command.limit_seconds(4, every, 100) == 0
    assert command.limit_seconds(4, [4], 100) == 100
    assert command.limit_seconds(7, every, 20) == 20
    assert command.limit_seconds(2, every, 470) == command.STAGES[2][1]


def test_every_launch_is_timed(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "shrink", lambda size: LayerShape(16, (16,), 1, 1))
    _, figures = kernels.cases(setting)["0.4B uniform"]()
    rows = figures["launches"]
    assert set(rows) == set(LAUNCHES)
    assert all(row["ms"] > 0 and row["tflops"] > 0 for table in rows.values() for row in table)


def test_the_sanitizer_is_asked_for_only_where_there_is_a_gpu(setting: Setting) -> None:
    assert races.cases(setting)["memcheck"]()[0].startswith("skipped")


@pytest.mark.parametrize("stage", range(len(command.STAGES)), ids=[name for name, _ in command.STAGES])
def test_every_stage_lists_its_cases(stage: int, tmp_path: Path) -> None:
    module = importlib.import_module(f"benchmarks.gpu.{command.STAGES[stage][0]}")
    try:
        assert module.cases(Setting(stage, True, 60.0, tmp_path, time.monotonic()))
    finally:
        torch.use_deterministic_algorithms(False)  # stage 2 wants NaN in torch.empty


def test_a_training_step_is_measured(setting: Setting) -> None:
    cases = importlib.import_module("benchmarks.gpu.trainer").cases(setting)
    line, figures = next(iter(cases.values()))()
    assert figures["tokens_per_second"] > 0
    assert "waits" in line
