"""`hmoe bench model` measures a whole model against transformers'; no time is asserted."""

import json
from pathlib import Path

import pytest

from hmoe.cli.main import run_command_line


def test_a_whole_model_beside_transformers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--prompt", "16", "--new", "2", "--rounds", "3", "--dtype", "float32", "--out", str(tmp_path)]
    assert run_command_line(["bench", "model", "tiny", *words]) == 0
    assert "times as fast in reading" in capsys.readouterr().out
    (path,) = tmp_path.glob("model-tiny-float32-*threads-*.json")
    content = json.loads(path.read_text())
    rates = content["tokens_per_second"]
    assert len(rates) == 7
    for part in ("read", "write"):
        best = max(
            rate for name, rate in rates.items() if name.startswith("transformers") and name.endswith(part)
        )
        assert content["ratio_to_best_of_transformers"][part] == pytest.approx(rates[f"hmoe {part}"] / best)
    assert run_command_line(["bench", "model", "hmoe-0.4b-topp", *words]) == 2
    assert "needs a preset with top-k experts" in capsys.readouterr().err
