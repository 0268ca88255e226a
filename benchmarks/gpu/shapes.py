"""Tile shapes to try: those of the package, and others that fit a multiprocessor twice or deeper and spill nothing (sm_90, Triton 3.6)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from hmoe.kernels.ragged import tune
from hmoe.kernels.ragged.backward import down_backward_kernel, weight_kernel
from hmoe.kernels.ragged.forward import down_kernel, up_kernel
from hmoe.kernels.ragged.tiles import INTERPRETED

KERNELS: dict[str, Any] = {
    "up": up_kernel, "down": down_kernel, "down_backward": down_backward_kernel, "weights": weight_kernel,
}  # fmt: skip
MORE: dict[str, tuple[tune.Shape, ...]] = {
    "up": ((128, 64, 64, 4, 3, 2), (128, 128, 64, 8, 4, 1)),
    "down": ((128, 128, 64, 4, 3, 2), (128, 256, 64, 8, 4, 1)),
    "down_backward": ((128, 64, 64, 4, 4, 2),),
    "weights": ((128, 128, 64, 4, 3, 2), (128, 256, 64, 8, 3, 1), (128, 128, 64, 8, 4, 1)),
}
ONE_SUM_ONLY = {(128, 128, 64, 4, 3, 2), (128, 256, 64, 8, 3, 1)}  # of MORE["weights"]: not with two accumulators


def candidates(kind: str, dtype: torch.dtype, two: bool = False) -> tuple[tune.Shape, ...]:
    """Tile shapes of a kernel."""
    if INTERPRETED:
        return tune.INTERPRETER
    if dtype == torch.float32:
        return tune.FLOAT32
    if dtype == torch.float16:
        return tune.SHAPES[kind][:1]
    return tuple(s for s in (*tune.SHAPES[kind], *MORE[kind]) if not (kind == "weights" and two and s in ONE_SUM_ONLY))


@contextmanager
def forced(chosen: Mapping[str, tune.Shape]) -> Iterator[None]:
    """Every kernel takes one shape; nothing is measured."""
    before = {kind: KERNELS[kind].configs for kind in chosen}
    try:
        for kind, shape in chosen.items():
            KERNELS[kind].configs = tune.configs((shape,))
        yield
    finally:
        for kind, shapes in before.items():
            KERNELS[kind].configs = shapes


def text(shape: tune.Shape) -> str:
    """128x128x64,8,3: tile, warps, stages."""
    return "x".join(map(str, shape[:3])) + f",{shape[3]},{shape[4]}"
