"""Tile shapes to try: those of the package's tables, and others that fit a multiprocessor twice or deeper."""

import torch

from hmoe.bench.tiles import list_candidate_shapes as table_candidates
from hmoe.kernels.ragged import shapes
from hmoe.kernels.ragged.tiles import INTERPRETED


def list_candidates(launch: str, dtype: torch.dtype) -> tuple[shapes.TileShape, ...]:
    """Return the tile shapes to try for a launch."""
    if INTERPRETED:
        return (shapes.INTERPRETER[launch]["wide"],)
    if dtype == torch.float32:
        return (shapes.FLOAT32[launch]["wide"],)
    return table_candidates(launch) if dtype == torch.bfloat16 else (shapes.HOPPER[launch]["wide"],)


def format_shape(shape: shapes.TileShape) -> str:
    """Return a shape as in 128x128x64,8,3: tile, warps, stages."""
    return "x".join(map(str, shape[:3])) + f",{shape[3]},{shape[4]}"
