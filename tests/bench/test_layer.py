"""`hmoe bench layer` measures what it says, in tiny shapes; no time is asserted."""

import json
from pathlib import Path

import pytest
import torch

from hmoe.bench import layer
from hmoe.cli.main import run_command_line

pytestmark = pytest.mark.usefixtures("small_limits")
OWN = ["bench", "layer", "--dim", "32", "--widths", "16,48,32", "--tokens", "37", "--rounds", "3"]


def test_layer_races_every_contender_and_writes_it_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line([*OWN, "--dtype", "float32", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    (path,) = tmp_path.glob("layer-cpu-*threads-*.json")
    assert f"written to {path}" in out
    content = json.loads(path.read_text())
    assert {"processor", "threads", "torch", "date", "kernels"} <= set(content["machine"])
    assert "hmoe triton" in [line["contender"] for line in content["left_out"]]
    names = [
        "dense",
        "hmoe",
        "hmoe equal",
        "hmoe loop",
        "hmoe eager loop",
        "transformers eager",
        "transformers grouped_mm",
    ]
    for backward in ("forward+backward", "forward"):
        rows = [row for row in content["rows"] if row["pass"] == backward]
        assert [row["contender"] for row in rows] == names
        assert rows[0]["ratio"] == 1
        assert all(
            row["ms"] > 0 and row["tflops_per_second"] > 0 and row["roofline_share"] > 0 for row in rows
        )
        assert all(row["widths"] == [16, 48, 32] and row["tokens"] == 37 for row in rows)


def test_a_ratio_is_at_equal_activated_work() -> None:
    """A contender that did twice the work in the same time counts as twice as fast."""
    shape = layer.LayerShape(32, (16, 48), 1, 8)
    racing = {
        name: layer.Contender(
            torch.relu, lambda: 0.0, torch.nn.Linear(2, 2), None, [0.5, 0.5], [units, units]
        )
        for name, units in (("dense", 100.0), ("other", 200.0))
    }
    dense, other = layer.tabulate_race(shape, torch.float32, False, racing, {"flops": 1e9, "bytes": 1e9})
    assert (dense["ratio"], other["ratio"]) == (1.0, 2.0)
    assert dense["tflops_per_second"] == pytest.approx(6 * 32 * 100 / 0.5 / 1e12)
    weights, tokens = 6 * 4, 2 * 8 * 32 * 4
    assert dense["least_megabytes"] == pytest.approx((weights + tokens) / 1e6)
    assert dense["roofline_share"] == pytest.approx(6 * 32 * 100 / 1e9 / 0.5)


def test_our_contender_counts_the_units_it_really_activated() -> None:
    shape = layer.LayerShape(32, (16, 48, 32), 2, 29)
    racing = layer.race_contenders(shape, torch.float32, "cpu", True, 3, ["hmoe"])
    assert len(racing["hmoe"].seconds) == len(racing["hmoe"].activated_units) == 3
    assert all(29 * (16 + 32) <= units <= 29 * (48 + 32) for units in racing["hmoe"].activated_units)
    assert len(set(racing["hmoe"].activated_units)) > 1  # the routing changed
    assert racing["dense"].activated_units == [29 * 2 * 32.0] * 3
