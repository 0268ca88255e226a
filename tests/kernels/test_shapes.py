"""Tile shapes come from a table, nothing is measured.

Every shape computes the same, none leaves a part of the result to chance.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from triton.runtime.errors import OutOfResources

from hmoe import ConfigError, TopK
from hmoe.kernels.ragged import launch, shapes
from hmoe.kernels.ragged.shapes import LAUNCHES, SIZES, TileShape, choose_shape, force_shapes, name_size
from tests.kernels.cases import CASES, INTERPRETED, NAMES, arguments, known, largest_errors, low_gates, run

pytestmark = pytest.mark.usefixtures("unwritten_is_nan")
NARROW, WIDE = TileShape(16, 16, 32, 4, 1, 1), TileShape(16, 32, 32, 4, 1, 2)
CPU = torch.device("cpu")


@pytest.fixture
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that HMOE_TILE_SHAPES names."""
    monkeypatch.setenv(shapes.VARIABLE, str(tmp_path / "tiles.json"))
    shapes._own_shapes.cache_clear()
    yield tmp_path / "tiles.json"
    shapes._own_shapes.cache_clear()


@pytest.mark.skipif(not INTERPRETED, reason="shapes for the interpreter")
@pytest.mark.parametrize("shape", [NARROW, WIDE], ids=["narrow", "wide"])
@pytest.mark.parametrize("again", [NARROW, WIDE], ids=["then narrow", "then wide"])
def test_every_shape_gives_the_oracle_whatever_ran_before(
    shape: TileShape, again: TileShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CASES, "two experts", (16, (32, 16), TopK(2), 3))
    values, routing, widths, grad, truth = known("two experts", "cpu", 0, torch.float32)
    for tile in (shape, again):
        with force_shapes(dict.fromkeys(LAUNCHES, tile)):
            results = run("triton", low_gates(values, torch.float32), routing, widths, grad)
        for name, error in zip(NAMES, largest_errors(truth, results), strict=True):
            assert error < 1e-5, f"{name}: {error}"  # NaN too


def test_memory_that_nobody_wrote_is_nan_in_these_tests() -> None:
    x = torch.ones(3)
    for empty in (torch.empty(5), x.new_empty(5), torch.empty_like(x)):
        assert empty.isnan().all()


def test_tables_are_whole() -> None:
    for table in (*shapes.TABLES.values(), shapes.FLOAT32):
        assert set(table) == set(LAUNCHES)
        assert all(set(row) == set(SIZES) for row in table.values())


def test_the_choice_depends_on_sizes_that_the_host_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "INTERPRETED", False)
    monkeypatch.setattr(shapes, "name_table", lambda device: "hopper")
    assert name_size("up", 8192, 1536, 768) == "wide"
    assert name_size("up", 8192, 192, 768) == "narrow"
    assert name_size("up", 16, 1536, 768) == name_size("dx", 8192, 1536, 128) == "few"
    assert choose_shape("up", (8192, 1536, 768), torch.bfloat16, CPU) == TileShape(128, 128, 64, 8, 4, 1)
    assert choose_shape("up", (8192, 192, 768), torch.bfloat16, CPU) == TileShape(128, 64, 64, 4, 3, 2)
    assert choose_shape("down", (8192, 1536, 768), torch.float32, CPU) == shapes.FLOAT32["down"]["wide"]


def test_a_gpu_with_less_shared_memory_uses_the_portable_table(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        shared_memory_per_block_optin = 99 * 1024

    monkeypatch.setattr(shapes, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    shapes.name_table.cache_clear()
    assert shapes.name_table(CPU) == "portable"
    Properties.shared_memory_per_block_optin = 227 * 1024
    shapes.name_table.cache_clear()
    assert shapes.name_table(CPU) == "hopper"
    shapes.name_table.cache_clear()


def test_a_file_of_ones_own_replaces_shapes_and_is_told(
    own_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "name_table", lambda device: "portable")
    before = shapes.HOPPER["up"]["few"]
    own_file.write_text(json.dumps({"tiles": {"up": {"few": [32, 64, 32, 4, 2, 1]}}}))
    assert choose_shape("up", (16, 64, 64), torch.bfloat16, CPU) == TileShape(32, 64, 32, 4, 2, 1)
    assert choose_shape("up", (1024, 64, 64), torch.bfloat16, CPU) == before
    described = shapes.describe_table(CPU)
    own_file.write_text(json.dumps({"tiles": {}}))
    shapes._own_shapes.cache_clear()
    assert described != shapes.describe_table(CPU)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        ("{", "written by `hmoe bench tiles`"),
        ("[]", "written by `hmoe bench tiles`"),
        ('{"tiles": {"sideways": {}}}', "launches are up, down"),
        ('{"tiles": {"up": {"huge": [64, 64, 64, 4, 3, 2]}}}', "sizes few, narrow, wide"),
        ('{"tiles": {"up": {"wide": [64, 64, 64, 4, 3]}}}', "must be rows, columns, depth"),
        ('{"tiles": {"up": {"wide": [64, 48, 64, 4, 3, 2]}}}', "powers of two from 16"),
        ('{"tiles": {"up": {"wide": [64, 64, 64, 4, 0, 2]}}}', "must be rows, columns, depth"),
        ('{"tiles": {"up": {"wide": [64, 1048576, 64, 4, 3, 2]}}}', "from 16 to 512"),
        ('{"tiles": {"up": {"wide": [64, 64, 64, 64, 3, 2]}}}', "warps (1 to 32"),
    ],
)
def test_a_file_that_is_no_table_is_refused_in_a_line(
    own_file: Path, content: str | None, words: str
) -> None:
    if content is not None:
        own_file.write_text(content)
    with pytest.raises(ConfigError, match="HMOE_TILE_SHAPES") as caught:
        choose_shape("up", (16, 64, 64), torch.bfloat16, CPU)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_shape_that_does_not_fit_the_gpu_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Kernel:
        def __getitem__(self, grid: object) -> Any:
            def run(*tensors: object, **constants: object) -> None:
                raise OutOfResources(300_000, 232_448, "shared memory")

            return run

    monkeypatch.setitem(launch.KERNELS, "up", (Kernel(), {}))
    values, routing, widths = arguments("one token")
    with pytest.raises(
        ConfigError, match=r"tile shape \[.*\] of up does not fit this GPU .*HMOE_TILE_SHAPES"
    ):
        run("triton", low_gates(values, torch.float32), routing, widths, values[0])
