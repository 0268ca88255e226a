"""Ragged Triton kernels of the backward pass."""

import triton
import triton.language as tl

from hmoe.kernels.ragged.tiles import (
    BY_PAIRS,
    BY_WIDTH,
    WORK,
    accumulate_product,
    load_sizes,
    locate_tile,
    row_and_column,
    split_columns,
)


@triton.jit
def _swiglu_backward(da, base, at, units, gate, pre_gate, pre_up, dgate, dup, act, real, h):
    """Write d gate, d up and gate * activation of some columns; return the row sums of da * activation."""
    mask = real[:, None] & (units < h)[None, :]
    at += units[None, :]
    g = tl.load(pre_gate + base + at, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(pre_up + base + at, mask=mask, other=0.0).to(tl.float32)
    sig = tl.sigmoid(g)
    silu = g * sig
    scaled = da * gate[:, None]
    tl.store(dgate + base + at, scaled * u * (sig + silu * (1 - sig)), mask=mask)
    tl.store(dup + base + at, scaled * silu, mask=mask)
    tl.store(act + base + at, silu * u * gate[:, None], mask=mask)
    return tl.sum(da * silu * u, 1)


@triton.jit(do_not_specialize=["num_pairs"])
def down_backward_kernel(
    dy_TD,
    token_N,
    gate_N,
    plan,
    w_down_FD,
    pre_gate,
    pre_up,
    dgate,
    dup,
    act,
    partial,
    num_pairs,
    D: tl.constexpr,
    PADDED: tl.constexpr,
    UPCAST: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Compute d gate, d up, gate * activation, and a partial d (routing gate) per pair and tile of units.

    Partial sums lie in [tile of BN units][pair] and are added up in order: the same bits for the same tile
    shape.
    """
    pairs, width = load_sizes(plan, BY_WIDTH, PADDED)
    ends = tl.cumsum(tl.cdiv(pairs, BM) * tl.cdiv(width, BN), 0)
    for index in range(tl.program_id(0), tl.max(ends, 0), tl.num_programs(0)):
        tile, M, h, pair, unit, pre = locate_tile(plan, ends, index, BY_WIDTH, PADDED)
        m, n = row_and_column(tile, tl.cdiv(M, BM), tl.cdiv(h, BN), GROUP)
        rows, units, depth = m * BM + tl.arange(0, BM), n * BN + tl.arange(0, BN), tl.arange(0, BK)
        real = rows < M
        token = tl.load(token_N + pair + rows, mask=real, other=0).to(tl.int32)
        gate = tl.load(gate_N + pair + rows, mask=real, other=0.0).to(tl.float32)
        dy_at = dy_TD + token[:, None] * D + depth[None, :]
        # Units beyond the last read the last one's weights, which needs no mask; nothing of them is stored.
        w_at = w_down_FD + unit * D + (tl.minimum(units, h - 1)[None, :] * D + depth[:, None])
        da = tl.zeros((BM, BN), tl.float32)
        for k in range(0, D, BK):
            if D % BK == 0:
                dy, w = tl.load(dy_at), tl.load(w_at)
            else:
                inside = k + depth < D
                dy = tl.load(dy_at, mask=inside[None, :], other=0.0)
                w = tl.load(w_at, mask=inside[:, None], other=0.0)
            da = accumulate_product(dy, w, da, UPCAST)
            dy_at += BK
            w_at += BK
        # In quarters: the epilogue of a whole tile needs more registers than there are (1.8 KB of spills).
        base = pre + (m * BM).to(tl.int64) * h
        at = tl.arange(0, BM)[:, None] * h
        left, right = split_columns(da, BM, BN)
        a, b = split_columns(left, BM, BN // 2)
        c, d = split_columns(right, BM, BN // 2)
        quarter = n * BN + tl.arange(0, BN // 4)
        sum_ = _swiglu_backward(a, base, at, quarter, gate, pre_gate, pre_up, dgate, dup, act, real, h)
        sum_ += _swiglu_backward(
            b, base, at, quarter + BN // 4, gate, pre_gate, pre_up, dgate, dup, act, real, h
        )
        sum_ += _swiglu_backward(
            c, base, at, quarter + BN // 2, gate, pre_gate, pre_up, dgate, dup, act, real, h
        )
        sum_ += _swiglu_backward(
            d, base, at, quarter + 3 * (BN // 4), gate, pre_gate, pre_up, dgate, dup, act, real, h
        )
        tl.store(partial + n.to(tl.int64) * num_pairs + pair + rows, sum_, mask=real)


@triton.jit
def weight_kernel(
    a,
    b,
    rows_TD,
    token_N,
    plan,
    dw_a_FD,
    dw_b_FD,
    D: tl.constexpr,
    PADDED: tl.constexpr,
    TWO: tl.constexpr,
    UPCAST: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Compute dw = a^T rows, and with the same rows b^T rows if TWO.

    The depth is the expert's pairs; an expert without pairs gets zeros. A program takes the next tile when it
    is done with one, because tiles are few and long, and those of busy experts several times as long as
    others.
    """
    _, width = load_sizes(plan, BY_PAIRS, PADDED)
    ends = tl.cumsum(tl.cdiv(width, BM) * tl.cdiv(D, BN), 0)
    # Two launches of this kernel share a plan, each with a counter of its own.
    taken = plan + WORK * PADDED + TWO
    index = tl.atomic_add(taken, 1, sem="relaxed").to(tl.int32)
    while index < tl.max(ends, 0):
        tile, M, h, pair, unit, pre = locate_tile(plan, ends, index, BY_PAIRS, PADDED)
        i, j = row_and_column(tile, tl.cdiv(h, BM), tl.cdiv(D, BN), GROUP)
        units, column, depth = i * BM + tl.arange(0, BM), j * BN + tl.arange(0, BN), tl.arange(0, BK)
        inside_h, inside_D = units < h, column < D
        at = depth[:, None] * h + units[None, :]
        a_at, b_at = a + pre + at, b + pre + at
        sum_a, sum_b = tl.zeros((BM, BN), tl.float32), tl.zeros((BM, BN), tl.float32)
        # One step ahead: rows whose index is loaded in the same step are copied two deep, whatever num_stages
        # says.
        ahead = tl.load(token_N + pair + depth, mask=depth < M, other=0).to(tl.int32)
        for m in range(0, M, BK):
            real, following, token = m + depth < M, m + BK + depth, ahead
            ahead = tl.load(token_N + pair + following, mask=following < M, other=0).to(tl.int32)
            row = tl.load(
                rows_TD + token[:, None] * D + column[None, :],
                mask=real[:, None] & inside_D[None, :],
                other=0.0,
            )
            mask = real[:, None] & inside_h[None, :]
            sum_a = accumulate_product(tl.trans(tl.load(a_at, mask=mask, other=0.0)), row, sum_a, UPCAST)
            if TWO:
                sum_b = accumulate_product(tl.trans(tl.load(b_at, mask=mask, other=0.0)), row, sum_b, UPCAST)
            a_at += BK * h
            b_at += BK * h
        base = (unit + i * BM) * D
        to = tl.arange(0, BM)[:, None] * D + column[None, :]
        mask = inside_h[:, None] & inside_D[None, :]
        tl.store(dw_a_FD + base + to, sum_a, mask=mask)
        if TWO:
            tl.store(dw_b_FD + base + to, sum_b, mask=mask)
        index = tl.atomic_add(taken, 1, sem="relaxed").to(tl.int32)
