"""Few tile shapes per kernel; the fastest is measured on first use and kept in Triton's cache folder.

Measured per model width, dtypes, and powers of two of rows per expert and mean width: within those the best tile hardly
changes, and what a routing does to the counts does not cause a new measurement. HMOE_FIRST_TILE_SHAPE=1 takes the first
shape of each kernel and measures nothing: for tests, which have many widths.
"""

import os
from collections.abc import Callable
from typing import Any

import triton

from hmoe.kernels.ragged.tiles import INTERPRETED

FIRST_ONLY = os.environ.get("HMOE_FIRST_TILE_SHAPE", "0") not in ("", "0")
LEAST_BN = 16 if INTERPRETED else 64  # narrowest tile of units: there is room for partial sums of as many
Shape = tuple[int, int, int, int, int, int]  # BM, BN, BK, warps, stages, programs per multiprocessor

# By kernel. 128 x 128 with two accumulators, or with the SwiGLU epilogue, needs 8 warps and all registers of a
# multiprocessor; 64-wide tiles waste less of experts whose width is no multiple of 128; 64 rows suit few tokens per expert.
# Only shapes that spill no register on sm_90 (tests/kernels/test_ragged_compile.py).
SHAPES: dict[str, tuple[Shape, ...]] = {
    "up": ((128, 128, 64, 8, 3, 1), (128, 64, 64, 8, 3, 1), (64, 64, 64, 4, 3, 2)),
    "down": ((128, 256, 64, 8, 3, 1), (128, 128, 64, 8, 3, 1), (128, 128, 32, 4, 4, 2), (64, 64, 64, 4, 3, 2)),
    "down_backward": ((128, 128, 64, 8, 3, 1), (128, 64, 64, 8, 3, 1), (128, 64, 64, 4, 3, 2), (64, 64, 64, 4, 3, 2)),
    "weights": ((128, 128, 64, 8, 3, 1), (64, 128, 64, 4, 3, 2), (64, 64, 64, 4, 3, 2)),
}
FLOAT32: tuple[Shape, ...] = ((64, 64, 32, 4, 2, 2),)  # for checks only
INTERPRETER: tuple[Shape, ...] = ((32, 64, 64, 4, 1, 1),)  # it pays per tile, not per number


def configs(shapes: tuple[Shape, ...]) -> list[triton.Config]:
    """As Triton wants them."""
    return [
        triton.Config({"BM": bm, "BN": bn, "BK": bk, "GROUP": 8, "WAVES": waves}, num_warps=warps, num_stages=stages)
        for bm, bn, bk, warps, stages, waves in shapes
    ]


def _fitting(shapes: list[triton.Config], named: dict[str, Any], **_: Any) -> list[triton.Config]:
    """Float32 tiles of the low-precision shapes do not fit into shared memory."""
    first = next(value for value in named.values() if hasattr(value, "element_size"))
    low = first.element_size() == 2
    return [c for c in shapes if (c.kwargs["BK"] == FLOAT32[0][2] and c.kwargs["BM"] == 64) != low] or shapes


def candidates(kernel: str) -> tuple[Shape, ...]:
    """Tile shapes to measure, of low precision and of float32."""
    if INTERPRETED:
        return INTERPRETER
    return (SHAPES[kernel][:1] if FIRST_ONLY else SHAPES[kernel]) + FLOAT32


def _untimed(call: Callable[[], None], quantiles: tuple[float, ...]) -> list[float]:
    """For a single shape; older Tritons would time that too."""
    return [0.0] * len(quantiles)


def tuned(kernel: str, *flags: str, partly_written: tuple[str, ...] = ()) -> Callable[[Any], Any]:
    """Decorator for a kernel of SHAPES.

    Args:
        kernel: its name in SHAPES.
        flags: arguments that change what it does.
        partly_written: outputs, zero before the launch, of which a tile shape may leave a part as it was. All shapes
            measured write into the same tensors, so these are zeroed before each and after the last.
    """
    return triton.autotune(  # type: ignore[no-any-return]
        configs(candidates(kernel)),
        key=["D", "tune_rows", "tune_width", *flags],
        prune_configs_by={"early_config_prune": _fitting},
        reset_to_zero=list(partly_written),
        do_bench=_untimed if FIRST_ONLY else None,
        cache_results=not (INTERPRETED or FIRST_ONLY),  # the interpreter has no device to name in the key
    )
