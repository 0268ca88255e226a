"""Measuring tile shapes without a GPU: small layers in the interpreter, a clock that is made up."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import hmoe
from hmoe.bench import tiles
from hmoe.bench.shapes import LayerShape
from hmoe.cli.main import run_command_line as run_verb
from hmoe.kernels.layer import Layer
from hmoe.kernels.ragged import shapes
from hmoe.kernels.ragged.shapes import LAUNCHES, TileShape, read_tile_table
from tests.kernels.cases import INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="the interpreter")
SMALL, LARGE = TileShape(16, 16, 16, 4, 1, 1), TileShape(16, 32, 16, 4, 1, 1)
TINY = LayerShape(16, (16, 32), 1, 3)


@pytest.fixture
def layer() -> Layer:
    moe = hmoe.MoE(TINY.dim, TINY.widths, hmoe.TopK(1, renormalize=False)).half()
    x_TD = torch.randn(TINY.tokens, TINY.dim).half()
    routing = moe.router(x_TD)
    weights = [w.detach() for w in (moe.w_gate, moe.w_up, moe.w_down)]
    return Layer(x_TD, routing.token_N, routing.gate_N.detach(), routing.num_tokens_E, *weights, TINY.widths)  # type: ignore[arg-type]


def clock(times: list[float]) -> Callable[[Callable[[], object]], float]:
    def timer(call: Callable[[], object]) -> float:
        call()
        return times.pop(0)

    return timer


def test_every_shape_is_a_row_and_what_differs_is_told(layer: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = tiles.list_launches(layer)
    assert set(launches) == set(LAUNCHES)
    rows = tiles.time_shapes("up", launches["up"], (SMALL, LARGE), clock([2.0, 1.0]))
    assert [row["ms"] for row in rows] == [2.0, 1.0]
    assert rows[0]["tflops"] == pytest.approx(launches["up"].flops / 2e9)

    def break_result(call: Callable[[], object]) -> float:
        launches["up"].run()
        if broken:
            launches["up"].output.zero_()
        broken.append(1)
        return 1.0

    broken: list[int] = []
    rows = tiles.time_shapes("up", launches["up"], (SMALL, LARGE), break_result)
    assert "ms" in rows[0]
    assert rows[1]["error"].startswith("differs from the first shape")


def test_what_a_shape_leaves_unwritten_is_not_what_the_one_before_wrote(layer: Layer) -> None:
    call, turns = tiles.list_launches(layer)["weights_down"], [True, False]

    def write_once(run: Callable[[], object]) -> float:
        return float(run() is None) if turns.pop(0) else 1.0

    rows = tiles.time_shapes("weights_down", call, (SMALL, LARGE), write_once)
    assert "ms" in rows[0]
    assert rows[1]["error"].startswith("differs from the first shape")


def test_a_shape_that_does_not_run_costs_only_itself(layer: Layer) -> None:
    call = tiles.list_launches(layer)["down"]
    impossible = TileShape(16, 24, 16, 4, 1, 1)  # no power of two
    rows = tiles.time_shapes("down", call, (impossible, SMALL), clock([1.0]))
    assert "error" in rows[0]
    assert rows[1]["ms"] == 1.0


def test_the_fastest_are_written_where_the_kernels_read_them(
    layer: Layer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tiles, "_draw_layer", lambda shape, dtype: layer)
    monkeypatch.setattr(tiles, "list_candidate_shapes", lambda launch: (SMALL, LARGE))
    monkeypatch.setattr(tiles, "describe_machine", lambda device: {})
    monkeypatch.setattr(tiles, "kernel_milliseconds", lambda run, device: [run(), float(forced_columns())][1])
    lines: list[str] = []
    path = tiles.bench_tiles(TINY, "float16", tmp_path, lines.append)
    table = read_tile_table(path)
    assert table == {launch: {"few": SMALL} for launch in LAUNCHES}  # the narrower takes less of this clock
    assert len(json.loads(path.read_text())["rows"]["up"]) == 2
    assert lines[-1].startswith(f"HMOE_TILE_SHAPES={path}")


def forced_columns() -> int:
    return next(iter(shapes._forced.values())).columns


def test_without_a_gpu_it_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verb(["bench", "tiles"]) == 2
    assert "PyTorch sees no NVIDIA GPU" in capsys.readouterr().err
