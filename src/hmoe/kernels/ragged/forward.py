"""Ragged Triton kernels of the forward pass, and the product that the backward pass shares with it."""

import triton
import triton.language as tl

from hmoe.kernels.ragged.tiles import (
    BY_WIDTH,
    PAIR,
    PAIRS,
    accumulate_product,
    count_turns,
    load_sizes,
    locate_tile,
    row_and_column,
    split_columns,
    tile_of_turn,
)


@triton.jit
def _swiglu(
    gate, up, base, at, start, pre_gate, pre_up, act, real, left, KEEP: tl.constexpr, BN: tl.constexpr
):
    """Store silu(gate) * up of some columns, and gate and up if KEEP; there are `left` columns."""
    column = start + tl.arange(0, BN)
    at += column[None, :]
    mask = real[:, None] & (column < left)[None, :]
    if KEEP:
        tl.store(pre_gate + base + at, gate, mask=mask)
        tl.store(pre_up + base + at, up, mask=mask)
    tl.store(act + base + at, gate * tl.sigmoid(gate) * up, mask=mask)


@triton.jit
def up_kernel(
    x_TD,
    token_N,
    plan,
    w_gate_FD,
    w_up_FD,
    pre_gate,
    pre_up,
    act,
    D: tl.constexpr,
    PADDED: tl.constexpr,
    KEEP: tl.constexpr,
    UPCAST: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Compute act = silu(x Wg^T) * (x Wu^T) for every pair; rows of x are gathered as they are loaded."""
    pairs, width = load_sizes(plan, BY_WIDTH, PADDED)
    ends = tl.cumsum(tl.cdiv(pairs, BM) * tl.cdiv(width, BN), 0)
    for index in range(tl.program_id(0), tl.max(ends, 0), tl.num_programs(0)):
        tile, M, h, pair, unit, pre = locate_tile(plan, ends, index, BY_WIDTH, PADDED)
        m, n = row_and_column(tile, tl.cdiv(M, BM), tl.cdiv(h, BN), GROUP)
        rows, units, depth = m * BM + tl.arange(0, BM), n * BN + tl.arange(0, BN), tl.arange(0, BK)
        token = tl.load(token_N + pair + rows, mask=rows < M, other=0).to(tl.int32)
        # Large offsets are added to the pointer, tiles of offsets stay 32 bits wide: 64 would not fit into
        # registers.
        x_at = token[:, None] * D + depth[None, :]
        # Units beyond the last read the last one's weights, which needs no mask; nothing of them is stored.
        w_at = tl.minimum(units, h - 1)[None, :] * D + depth[:, None]
        gate_from, up_from = w_gate_FD + unit * D, w_up_FD + unit * D
        gate, up = tl.zeros((BM, BN), tl.float32), tl.zeros((BM, BN), tl.float32)
        for k in range(0, D, BK):
            if D % BK == 0:
                x, w_gate, w_up = (
                    tl.load(x_TD + k + x_at),
                    tl.load(gate_from + k + w_at),
                    tl.load(up_from + k + w_at),
                )
            else:
                inside = k + depth < D
                x = tl.load(x_TD + k + x_at, mask=inside[None, :], other=0.0)
                w_gate = tl.load(gate_from + k + w_at, mask=inside[:, None], other=0.0)
                w_up = tl.load(up_from + k + w_at, mask=inside[:, None], other=0.0)
            gate = accumulate_product(x, w_gate, gate, UPCAST)
            up = accumulate_product(x, w_up, up, UPCAST)
        base, real = pre + (m * BM).to(tl.int64) * h, rows < M
        at = tl.arange(0, BM)[:, None] * h + n * BN
        # In halves, so that fewer registers are live at a time.
        gate_left, gate_right = split_columns(gate, BM, BN)
        up_left, up_right = split_columns(up, BM, BN)
        _swiglu(gate_left, up_left, base, at, 0, pre_gate, pre_up, act, real, h - n * BN, KEEP, BN // 2)
        _swiglu(
            gate_right, up_right, base, at, BN // 2, pre_gate, pre_up, act, real, h - n * BN, KEEP, BN // 2
        )


@triton.jit
def _add_product(
    sum_, a_at, w_at, h, inside_D, D: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, UPCAST: tl.constexpr
):
    """Return sum_ + rows of an activation times rows of a weight, over the h units of one expert."""
    depth = tl.arange(0, BK)
    for k in range(0, h, BK):
        inside = k + depth < h
        a = tl.load(a_at, mask=inside[None, :], other=0.0)
        w = tl.load(w_at, mask=inside[:, None] & inside_D[None, :], other=0.0)
        sum_ = accumulate_product(a, w, sum_, UPCAST)
        a_at += BK
        w_at += BK * D
    return sum_


@triton.jit
def down_kernel(
    a,
    w_FD,
    b,
    v_FD,
    plan,
    out_ND,
    D: tl.constexpr,
    PADDED: tl.constexpr,
    TWO: tl.constexpr,
    UPCAST: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Compute out = a W for every pair, or a W + b V if TWO (d x); the depth is the expert's width."""
    pairs, _ = load_sizes(plan, BY_WIDTH, PADDED)
    ends = tl.cumsum(tl.cdiv(pairs, BM) * tl.cdiv(D, BN), 0)
    for turn in range(count_turns(tl.max(ends, 0))):
        tile, M, h, pair, unit, pre = locate_tile(plan, ends, tile_of_turn(turn), BY_WIDTH, PADDED)
        m, n = row_and_column(tile, tl.cdiv(M, BM), tl.cdiv(D, BN), GROUP)
        row, column, depth = tl.arange(0, BM), n * BN + tl.arange(0, BN), tl.arange(0, BK)
        real, inside_D = m * BM + row < M, column < D
        base = pre + (m * BM).to(tl.int64) * h
        # Rows beyond the last read row 0 of the tile: those after the last expert would lie outside of the
        # memory.
        a_at = tl.where(real, row, 0)[:, None] * h + depth[None, :]
        w_at = depth[:, None] * D + column[None, :]
        sum_ = tl.zeros((BM, BN), tl.float32)
        sum_ = _add_product(sum_, a + base + a_at, w_FD + unit * D + w_at, h, inside_D, D, BN, BK, UPCAST)
        if TWO:
            sum_ = _add_product(sum_, b + base + a_at, v_FD + unit * D + w_at, h, inside_D, D, BN, BK, UPCAST)
        out_at = row[:, None] * D + column[None, :]
        tl.store(out_ND + (pair + m * BM) * D + out_at, sum_, mask=real[:, None] & inside_D[None, :])


@triton.jit
def place_kernel(token_N, plan, place_TE, E: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr):
    """Write the pair of token t and expert e to place_TE[t, e]; the other places stay as they are.

    One program per BLOCK pairs and expert.
    """
    expert, rows = tl.program_id(1), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pair = tl.load(plan + PAIR * PADDED + expert) + rows
    real = rows < tl.load(plan + PAIRS * PADDED + expert)
    token = tl.load(token_N + pair, mask=real, other=0)
    tl.store(place_TE + token * E + expert, pair.to(tl.int32), mask=real)


@triton.jit
def combine_kernel(
    rows_ND,
    gate_N,
    place_TE,
    y_TD,
    D: tl.constexpr,
    BD: tl.constexpr,
    E: tl.constexpr,
    PADDED: tl.constexpr,
    GATED: tl.constexpr,
):
    """Compute y_t = sum of the token's rows, times their gates if GATED, in the order of the experts.

    One program per token, which may have any number of rows.
    """
    token, lane, column = tl.program_id(0).to(tl.int64), tl.arange(0, PADDED), tl.arange(0, BD)
    place = tl.load(place_TE + token * E + lane, mask=lane < E, other=-1)
    chosen = (place >= 0).to(tl.int32)
    rank = tl.cumsum(chosen, 0) - chosen
    sum_ = tl.zeros((BD,), tl.float32)
    # Only the chosen experts are walked through; the order is fixed, so the same bits come out every time.
    for i in range(tl.sum(chosen, 0)):
        pair = tl.sum(tl.where((rank == i) & (place >= 0), place, 0), 0).to(tl.int64)
        row = tl.load(rows_ND + pair * D + column, mask=column < D, other=0.0).to(tl.float32)
        sum_ += row * tl.load(gate_N + pair).to(tl.float32) if GATED else row
    tl.store(y_TD + token * D + column, sum_, mask=column < D)
