"""Triton kernel of rotary positions: queries or keys read once and written once."""

import torch
import triton
import triton.language as tl

from hmoe.kernels.capture import check_first_call
from hmoe.kernels.device import use_device_of

ROWS = 16  # heads at positions that a program rotates


@triton.jit(do_not_specialize=["num_rows"])
def rotate_kernel(
    x_BHLC,
    cos,
    sin,
    out_BHLC,
    num_rows,
    heads,
    length,
    x_stride_batch,
    x_stride_head,
    x_stride_position,
    out_stride_batch,
    out_stride_head,
    out_stride_position,
    table_stride_batch,
    HALF: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Map (a, b) to (a cos - b sin, b cos + a sin) for the pairs (i, i + C/2) of all heads and positions.

    A row is a head at a position: [sequence][position][head].
    """
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, PADDED)[None, :]
    real = (row < num_rows)[:, None] & (column < HALF)
    head, place = row % heads, row // heads
    position, batch = place % length, (place // length).to(tl.int64)
    # Input and output have strides of their own: attention gives its heads transposed.
    x_at = (batch * x_stride_batch + head * x_stride_head + position * x_stride_position)[:, None] + column
    out_at = (batch * out_stride_batch + head * out_stride_head + position * out_stride_position)[
        :, None
    ] + column
    table_at = (batch * table_stride_batch + position * HALF)[:, None] + column
    c = tl.load(cos + table_at, mask=real, other=0.0).to(tl.float32)
    s = tl.load(sin + table_at, mask=real, other=0.0).to(tl.float32)
    a = tl.load(x_BHLC + x_at, mask=real, other=0.0).to(tl.float32)
    b = tl.load(x_BHLC + x_at + HALF, mask=real, other=0.0).to(tl.float32)
    tl.store(out_BHLC + out_at, a * c - b * s, mask=real)
    tl.store(out_BHLC + out_at + HALF, b * c + a * s, mask=real)


def launch_rotation(x_BHLC: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Launch the kernel of rotary positions; arguments as in `hmoe.kernels.rotate_pairs`."""
    # The kernel knows the strides of all axes but the last.
    x_BHLC = x_BHLC if x_BHLC.stride(-1) == 1 else x_BHLC.contiguous()
    cos, sin, out_BHLC = cos.contiguous(), sin.contiguous(), torch.empty_like(x_BHLC)
    batch, heads, length, width = x_BHLC.shape
    check_first_call("rotary positions", (width, x_BHLC.dtype), x_BHLC.device)
    rows, half = batch * heads * length, width // 2
    # A table of one sequence serves all: its stride over sequences is 0.
    strides = (*x_BHLC.stride()[:3], *out_BHLC.stride()[:3], length * half if len(cos) > 1 else 0)
    if rows:
        with use_device_of(x_BHLC):
            grid = (triton.cdiv(rows, ROWS),)
            sizes = (rows, heads, length, *strides, half, triton.next_power_of_2(half), ROWS)
            rotate_kernel[grid](x_BHLC, cos, sin, out_BHLC, *sizes)
    return out_BHLC
