"""Experts one after another through library GEMMs, with a hand-written backward pass.

Saves x, the two pre-activations and indices only. On CPU in bfloat16 each expert's rows are padded with zeros to a
bucket, because oneDNN builds a new kernel for every row count it has not seen, which costs milliseconds per GEMM on
processors with AMX. On one without AMX it made little difference (docs/log.md).
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F


def bucket(rows: int) -> int:
    """Smallest number >= rows that is a multiple of 32 with at most 5 significant bits (<= 6% above 512 rows)."""
    step = max(32, 1 << max(0, rows.bit_length() - 5))
    return -(-rows // step) * step


class _Expert(NamedTuple):
    """Where one expert's pairs, padded rows and hidden units lie."""

    pairs: slice
    rows: slice
    units: slice
    num_pairs: int


def _experts(counts: Sequence[int], widths: Sequence[int], padded: bool) -> list[_Expert]:
    experts, pair, row, unit = [], 0, 0, 0
    for count, width in zip(counts, widths, strict=True):
        rows = bucket(count) if padded else count
        experts.append(_Expert(slice(pair, pair + count), slice(row, row + rows), slice(unit, unit + width), count))
        pair, row, unit = pair + count, row + rows, unit + width
    return experts


class _Combine(NamedTuple):
    """Row of each pair, pairs regrouped by token: `embedding_bag` sums them 5 times faster than `index_add_`."""

    order_N: torch.Tensor
    row_N: torch.Tensor
    start_T: torch.Tensor

    def __call__(self, rows_PD: torch.Tensor, gate_N: torch.Tensor | None = None) -> torch.Tensor:
        weights = None if gate_N is None else gate_N[self.order_N].to(rows_PD.dtype)
        return F.embedding_bag(self.row_N, rows_PD, self.start_T, mode="sum", per_sample_weights=weights)


def _combine(experts: Sequence[_Expert], token_N: torch.Tensor, num_tokens: int) -> _Combine:
    order_N = torch.argsort(token_N, stable=True)
    rows = [torch.arange(e.rows.start, e.rows.start + e.num_pairs, device=token_N.device) for e in experts]
    counts_T = torch.bincount(token_N, minlength=num_tokens)
    return _Combine(order_N, torch.cat(rows)[order_N], counts_T.cumsum(0) - counts_T)


def _gather(x_TD: torch.Tensor, token_M: torch.Tensor, scratch_PD: torch.Tensor, rows: int) -> torch.Tensor:
    """Rows of x for one expert in a reused buffer; rows beyond the tokens are zero."""
    out_MD = scratch_PD[:rows]
    torch.index_select(x_TD, 0, token_M, out=out_MD[: len(token_M)])
    out_MD[len(token_M) :].zero_()
    return out_MD


class _ExpertLoop(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TD: torch.Tensor,
        token_N: torch.Tensor,
        gate_N: torch.Tensor,
        num_tokens_E: torch.Tensor,
        w_gate_FD: torch.Tensor,
        w_up_FD: torch.Tensor,
        w_down_FD: torch.Tensor,
        widths: Sequence[int],
    ) -> torch.Tensor:
        x_TD = x_TD.contiguous()
        padded = x_TD.device.type == "cpu" and x_TD.dtype == torch.bfloat16
        experts = _experts(num_tokens_E.tolist(), widths, padded)
        combine = _combine(experts, token_N, len(x_TD))
        scratch_PD, out_PD = _buffers(x_TD, experts)
        gates, ups = [], []
        for e, rows in _busy(experts):
            x_MD = _gather(x_TD, token_N[e.pairs], scratch_PD, rows)
            gates.append(x_MD @ w_gate_FD[e.units].T)
            ups.append(x_MD @ w_up_FD[e.units].T)
            torch.mm(F.silu(gates[-1]).mul_(ups[-1]), w_down_FD[e.units], out=out_PD[e.rows])
        ctx.save_for_backward(x_TD, token_N, gate_N, w_gate_FD, w_up_FD, w_down_FD, *combine, *gates, *ups)
        ctx.experts = experts
        return combine(out_PD, gate_N)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        x_TD, token_N, gate_N, w_gate_FD, w_up_FD, w_down_FD, *rest = ctx.saved_tensors
        dy_TD = grad_outputs[0].contiguous()
        combine, pre = _Combine(*rest[:3]), rest[3:]
        scratch_PD, dx_PD = _buffers(x_TD, ctx.experts)
        dy_PD = torch.empty_like(scratch_PD)
        dgate_N = torch.zeros_like(gate_N)
        dw_gate_FD, dw_up_FD, dw_down_FD = (torch.zeros_like(w) for w in (w_gate_FD, w_up_FD, w_down_FD))
        for i, (e, rows) in enumerate(_busy(ctx.experts)):
            g_Mh, u_Mh = pre[i], pre[len(pre) // 2 + i]
            x_MD = _gather(x_TD, token_N[e.pairs], scratch_PD, rows)
            dy_MD = _gather(dy_TD, token_N[e.pairs], dy_PD, rows)
            gate_M1 = F.pad(gate_N[e.pairs], (0, rows - e.num_pairs)).to(x_TD.dtype).unsqueeze(1)
            da_Mh = dy_MD @ w_down_FD[e.units].T
            silu_Mh = F.silu(g_Mh)
            a_Mh = silu_Mh * u_Mh
            # d gate = <d output, expert output> = <d a, a>: the expert's output need not be kept.
            dgate_N[e.pairs] = (da_Mh[: e.num_pairs] * a_Mh[: e.num_pairs]).sum(1, dtype=gate_N.dtype)
            da_Mh.mul_(gate_M1)
            torch.mm(a_Mh.T, dy_MD.mul_(gate_M1), out=dw_down_FD[e.units])
            dg_Mh = torch.ops.aten.silu_backward(torch.mul(da_Mh, u_Mh, out=a_Mh), g_Mh)
            du_Mh = da_Mh.mul_(silu_Mh)
            torch.mm(dg_Mh.T, x_MD, out=dw_gate_FD[e.units])
            torch.mm(du_Mh.T, x_MD, out=dw_up_FD[e.units])
            dx_MD = dx_PD[e.rows]
            torch.mm(dg_Mh, w_gate_FD[e.units], out=dx_MD)
            dx_MD.addmm_(du_Mh, w_up_FD[e.units])
        return combine(dx_PD), None, dgate_N, None, dw_gate_FD, dw_up_FD, dw_down_FD, None


def _busy(experts: Sequence[_Expert]) -> Iterator[tuple[_Expert, int]]:
    """Experts that have tokens, with their (padded) number of rows."""
    return ((e, e.rows.stop - e.rows.start) for e in experts if e.num_pairs)


def _buffers(x_TD: torch.Tensor, experts: Sequence[_Expert]) -> tuple[torch.Tensor, torch.Tensor]:
    """Scratch for the busiest expert's rows, and room for the rows of all."""
    longest = max(rows.stop - rows.start for _, rows, _, _ in experts)
    return x_TD.new_empty(longest, x_TD.shape[1]), x_TD.new_empty(experts[-1].rows.stop, x_TD.shape[1])


def expert_ffn_loop(
    x_TD: torch.Tensor,
    token_N: torch.Tensor,
    gate_N: torch.Tensor,
    num_tokens_E: torch.Tensor,
    w_gate_FD: torch.Tensor,
    w_up_FD: torch.Tensor,
    w_down_FD: torch.Tensor,
    widths: Sequence[int],
) -> torch.Tensor:
    """Arguments and result as in `hmoe.kernels.expert_ffn`."""
    y_TD: torch.Tensor = _ExpertLoop.apply(  # type: ignore[no-untyped-call]
        x_TD, token_N, gate_N, num_tokens_E, w_gate_FD, w_up_FD, w_down_FD, tuple(widths)
    )
    return y_TD
