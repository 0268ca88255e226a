"""Tile shapes: which one each launch uses, from a table measured once, so that training never measures.

The choice depends on the device's kind, on the launch, and on sizes that the host knows without asking the
device. So the same layer on the same kind of GPU sums in the same order, in every process. `hmoe bench tiles`
measures other shapes and writes a file of the fastest; HMOE_TILE_SHAPES=FILE uses it in place of the table's,
and a run records which were used.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from hmoe.errors import ConfigError
from hmoe.kernels.ragged.tiles import INTERPRETED

VARIABLE = "HMOE_TILE_SHAPES"
GROUP = 8  # rows of tiles that share operands in the cache


class TileShape(NamedTuple):
    """What one program computes at a time: rows x columns, in steps of the depth.

    Attributes:
        rows, columns, depth: sides of a tile and length of a step; powers of two.
        warps, stages: threads / 32 of a program, and steps of the depth that are copied ahead.
        programs: how many are started per multiprocessor.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    programs: int

    @property
    def options(self) -> dict[str, int]:
        """The constants and options that a launch is given."""
        tile = {"BM": self.rows, "BN": self.columns, "BK": self.depth, "GROUP": GROUP}
        return {**tile, "num_warps": self.warps, "num_stages": self.stages}


Sizes = dict[str, TileShape]  # by size of the layer: few, narrow, wide
Table = dict[str, Sizes]  # by launch

LAUNCHES = ("up", "down", "dx", "down_backward", "weights_gate_up", "weights_down")
SIZES = ("few", "narrow", "wide")
FEW_ROWS, SLIM, NARROW_WIDTH = 128, 256, 512

_128x128 = TileShape(128, 128, 64, 8, 3, 1)
_64x64 = TileShape(64, 64, 64, 4, 3, 2)
_32_DEEP = TileShape(64, 64, 32, 4, 2, 2)


def _sizes(few: TileShape, narrow: TileShape, wide: TileShape) -> Sizes:
    return dict(zip(SIZES, (few, narrow, wide), strict=True))


# The fastest on an H200 (benchmarks/results/gpu-run-2026-11-27.json, stage 4) for the 0.4B, 3B and 64-expert
# layers; `few` by reasoning: fewer rows of padding. All spill no register
# (tests/kernels/test_ragged_compile.py).
HOPPER: Table = {
    "up": _sizes(_64x64, TileShape(128, 64, 64, 4, 3, 2), TileShape(128, 128, 64, 8, 4, 1)),
    "down": _sizes(_64x64, TileShape(128, 256, 64, 8, 3, 1), TileShape(128, 256, 64, 8, 3, 1)),
    "dx": _sizes(_64x64, TileShape(128, 256, 64, 8, 3, 1), TileShape(128, 256, 64, 8, 3, 1)),
    "down_backward": _sizes(_64x64, TileShape(128, 64, 64, 4, 4, 2), _128x128),
    "weights_gate_up": _sizes(_64x64, TileShape(64, 128, 64, 4, 3, 2), _128x128),
    "weights_down": _sizes(_64x64, TileShape(128, 128, 64, 4, 3, 2), TileShape(128, 128, 64, 4, 3, 2)),
}
# For GPUs that nothing was measured on: small enough for 99 KB of shared memory, no spilled register on
# sm_80.
PORTABLE: Table = {launch: _sizes(_64x64, _64x64, _64x64) for launch in LAUNCHES}
# For checks; two products at a time need twice the registers.
FLOAT32: Table = {
    launch: dict.fromkeys(
        SIZES, TileShape(32, 32, 32, 4, 2, 2) if launch in ("up", "weights_gate_up") else _32_DEEP
    )
    for launch in LAUNCHES
}
# The interpreter pays per tile, however large it is.
INTERPRETER: Table = {launch: dict.fromkeys(SIZES, TileShape(32, 64, 64, 4, 1, 1)) for launch in LAUNCHES}
TABLES = {"hopper": HOPPER, "portable": PORTABLE, "interpreter": INTERPRETER}
_HOPPER_BYTES = 227 * 1024  # shared memory that a block of threads may use
_LONGEST_SIDE, _MOST_WARPS = 512, 32  # what compiles; 32 warps are the 1024 threads that a block may have

_forced: dict[str, TileShape] = {}


def name_size(launch: str, rows: int, width: int, dim: int) -> str:
    """Return which of SIZES a launch of a layer has: the column of a table that is used.

    Args:
        launch: one of LAUNCHES.
        rows: token-expert pairs per expert, on average.
        width: hidden units of an expert, on average.
        dim: model width, over which the columns of `down` and `dx` go.
    """
    if rows < FEW_ROWS or (launch in ("down", "dx") and dim < SLIM):
        return "few"
    return "narrow" if width < NARROW_WIDTH else "wide"


def choose_shape(
    launch: str, sizes: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> TileShape:
    """Return the tile shape of a launch; `sizes` are (rows, width, dim) as in `name_size`."""
    if launch in _forced:
        return _forced[launch]
    size = name_size(launch, *sizes)
    if dtype == torch.float32 and not INTERPRETED:
        return FLOAT32[launch][size]
    return _own_shapes().get(launch, {}).get(size) or TABLES[name_table(device)][launch][size]


@functools.cache
def name_table(device: torch.device) -> str:
    """Return the device's table: Hopper's where a block may use as much shared memory, else the portable."""
    if INTERPRETED:
        return "interpreter"
    properties = torch.cuda.get_device_properties(device)
    # PyTorch does not have this property on every platform.
    shared = getattr(properties, "shared_memory_per_block_optin", 0)
    return "hopper" if shared >= _HOPPER_BYTES else "portable"


def describe_table(device: torch.device) -> str:
    """Return name and digest of the table in use, for a run's record.

    Other shapes sum in another order, so bits may differ between runs with different digests.
    """
    table = {
        launch: {**TABLES[name_table(device)][launch], **_own_shapes().get(launch, {})} for launch in LAUNCHES
    }
    digest = hashlib.sha256(json.dumps([table, FLOAT32], sort_keys=True).encode()).hexdigest()[:8]
    return f"{name_table(device)} {digest}"


@contextmanager
def force_shapes(shapes: Mapping[str, TileShape]) -> Iterator[None]:
    """Make these launches use these shapes within the context, whatever the sizes."""
    before = dict(_forced)
    _forced.update(shapes)
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)


@functools.cache
def _own_shapes() -> Table:
    """Read the table that HMOE_TILE_SHAPES names; empty where it is not set."""
    file = os.environ.get(VARIABLE)
    return read_tile_table(Path(file)) if file else {}


def read_tile_table(file: Path) -> Table:
    """Read the tile shapes that `hmoe bench tiles` wrote.

    Raises:
        ConfigError: for a file that is missing or no such table.
    """
    try:
        content = json.loads(file.read_text())["tiles"]
        return {
            launch: {size: _check_shape(shape) for size, shape in row.items()}
            for launch, row in _check_rows(content)
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{VARIABLE} = {file}: {error or type(error).__name__}; must be a file written by `hmoe bench tiles`"
        ) from None


def _check_rows(content: dict[str, dict[str, list[int]]]) -> Iterator[tuple[str, dict[str, list[int]]]]:
    for launch, row in content.items():
        if launch not in LAUNCHES or not set(row) <= set(SIZES):
            raise ValueError(
                f"{launch}: {', '.join(row)}: launches are {', '.join(LAUNCHES)}, sizes {', '.join(SIZES)}"
            )
        yield launch, row


def _check_shape(shape: list[int]) -> TileShape:
    fitting = len(shape) == len(TileShape._fields) and all(
        type(value) is int and value > 0 for value in shape
    )
    if (
        not fitting
        or any(value & (value - 1) for value in shape[:4])
        or min(shape[:3]) < 16
        or not _compiles(shape)
    ):
        raise ValueError(
            f"{shape}: must be rows, columns, depth (powers of two from 16 to {_LONGEST_SIDE}), warps (1 to "
            f"{_MOST_WARPS}, a power of two), stages, programs (from 1)"
        )
    return TileShape(*shape)


def _compiles(shape: list[int]) -> bool:
    # Whether it also fits the GPU is known when it is launched.
    return max(shape[:3]) <= _LONGEST_SIDE and shape[3] <= _MOST_WARPS
