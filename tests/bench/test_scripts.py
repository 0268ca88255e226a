"""The scripts of benchmarks/ run, small: nothing else calls them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(name: str, out: Path, *words: str) -> dict[str, Any]:
    command = [sys.executable, str(BENCHMARKS / name), *words, "--out", str(out)]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert process.returncode == 0, process.stderr[-2000:]
    assert "nan" not in process.stdout
    (written,) = [out] if out.suffix else out.glob("*.json")
    assert "NaN" not in written.read_text()  # no JSON
    result: dict[str, Any] = json.loads(written.read_text())
    return result


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_serve(tmp_path: Path, stream: list[str]) -> None:
    small = [
        "--rounds",
        "1",
        "--clients",
        "2",
        "--requests",
        "1",
        "--prompt-tokens",
        "8",
        "--new-tokens",
        "6",
    ]
    result = run("serve.py", tmp_path, "--preset", "tiny", "--precision", "float32", *small, *stream)
    assert result["tokens_per_second_many"] > 0
    assert result["ratio"] == pytest.approx(
        result["tokens_per_second_many"] / result["tokens_per_second_one"]
    )


def test_waves(capsys: pytest.CaptureFixture[str]) -> None:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import waves
    finally:
        sys.path.pop(0)
    assert waves.busiest_work([4, 3, 2, 1], 2) == (6, 5, 5)  # 4 + 2; 4 + 1; 4 + 1
    waves.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(waves.LAYERS) * 2 * 5
    for line in lines[1:]:
        in_turn, and_back, free = map(float, line.split()[-3:])
        assert 1 <= free <= and_back <= in_turn


@pytest.mark.slow
def test_processes(tmp_path: Path) -> None:
    small = [
        "--preset",
        "tiny",
        "--tokens",
        "512",
        "--steps",
        "2",
        "--groups",
        "alone",
        "zero3",
        "zero2, exact",
    ]
    rows = run("processes.py", tmp_path / "x.json", *small)["rows"]
    assert [row["group"] for row in rows] == ["alone", "zero3", "zero2, exact"]
    assert rows[0]["speed_beside_alone"] == 1
    assert all(row["seconds"] > 0 for row in rows)


@pytest.mark.slow
def test_shared_checkpoints(tmp_path: Path) -> None:
    result = run("shared_checkpoints.py", tmp_path / "x.json", "--megabytes", "60", "--rounds", "2")
    assert len(result["seconds"]) == 2
    assert 0 < result["held"] < result["save"]


def test_offload(tmp_path: Path) -> None:
    result = run("offload.py", tmp_path / "offload.json", "tiny", "--rounds", "1", "--steps", "2")
    assert result["same_weights"]
    assert result["ratio"] > 0
    assert result["planned_written_bytes"] > 0


def test_serve_offload(tmp_path: Path) -> None:
    """Answers are compared by the script itself."""
    small = ["--rounds", "1", "--new-tokens", "3", "--dim", "64", "--layers", "2", "--clients", "2"]
    (row,) = run("serve_offload.py", tmp_path / "serve.json", *small)["rows"]
    assert row["ratio"] > 0
    assert 0 < row["hit_rate"] <= 1
