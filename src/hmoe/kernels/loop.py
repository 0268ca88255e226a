"""Experts one after another through library GEMMs, with a hand-written backward pass; any device and dtype.

Saves x, the two pre-activations and indices only. On CPU in bfloat16 each expert's rows are padded with zeros
to a bucket, because oneDNN builds a new kernel for every row count it has not seen, which costs milliseconds
per GEMM.

    pairs:            [expert 0][expert 1]...          sorted by expert
    padded rows:      [expert 0 |0 0][expert 1 |0]...  each expert's pairs, then zeros up to its bucket
    pre-activations:  [rows of expert 0 x its units][rows of expert 1 x its units]...
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F

from hmoe.kernels.layer import Backend, ExpertSource, Gradients, Layer, Matrices, Saved


def round_up_rows(rows: int) -> int:
    """Return the smallest number >= rows that is a multiple of 32 and has at most 4 significant bits.

    That is at most 12% more above 256 rows, 4% on average.
    """
    step = max(32, 1 << max(0, rows.bit_length() - 4))
    return -(-rows // step) * step


def count_loop_rows(x_TD: torch.Tensor, num_pairs: int) -> int:
    """Return the rows computed for an expert: its pairs, or their bucket where shapes should recur."""
    return (
        round_up_rows(num_pairs) if x_TD.device.type == "cpu" and x_TD.dtype == torch.bfloat16 else num_pairs
    )


class ExpertSlices(NamedTuple):
    """A busy expert's number, and where its pairs, padded rows, hidden units and pre-activations lie."""

    expert: int
    pairs: slice
    rows: slice
    units: slice
    pre: slice
    num_pairs: int
    num_rows: int
    width: int


def list_busy_experts(layer: Layer) -> list[ExpertSlices]:
    """List the experts that have pairs; reads the counts, so it waits for the device."""
    experts, pair, row, unit, pre = [], 0, 0, 0, 0
    for expert, (count, width) in enumerate(zip(layer.num_tokens_E.tolist(), layer.widths, strict=True)):
        rows = count_loop_rows(layer.x_TD, count) if count else 0
        ends = pair + count, row + rows, unit + width, pre + rows * width
        if count:
            slices = slice(pair, ends[0]), slice(row, ends[1]), slice(unit, ends[2]), slice(pre, ends[3])
            experts.append(ExpertSlices(expert, *slices, count, rows, width))
        pair, row, unit, pre = ends
    return experts


def sum_rows_by_token(
    layer: Layer, experts: Sequence[ExpertSlices], order_N: torch.Tensor, rows_MD: torch.Tensor, gated: bool
) -> torch.Tensor:
    """Return each token's sum of its rows (T, D), times their gates if `gated`.

    Args:
        layer: the layer.
        experts: its busy experts.
        order_N: pairs grouped by token.
        rows_MD: rows of all busy experts with their padding.
        gated: whether each row is multiplied by its pair's gate.
    """
    x_TD, token_N, gate_N = layer.x_TD, layer.token_N, layer.gate_N
    row_of_pair = [
        torch.arange(e.rows.start, e.rows.start + e.num_pairs, device=token_N.device) for e in experts
    ]
    if not row_of_pair:
        return torch.zeros_like(x_TD)
    order = order_N[: experts[-1].pairs.stop]  # without the pairs beyond the counts
    starts_T = torch.searchsorted(token_N[order], torch.arange(len(x_TD), device=token_N.device))
    weights = gate_N[order].to(rows_MD.dtype) if gated else None
    # A bag is a token, its entries are the token's rows; 5 times faster than `index_add_`.
    return F.embedding_bag(
        torch.cat(row_of_pair)[order], rows_MD, starts_T, mode="sum", per_sample_weights=weights
    )


def order_by_token(layer: Layer, experts: Sequence[ExpertSlices]) -> torch.Tensor:
    """Return the pairs by token, then by expert (N,); pairs beyond the counts stay at the end."""
    num_used = experts[-1].pairs.stop if experts else 0
    order_N = torch.arange(len(layer.token_N), device=layer.token_N.device)
    # Stable: pairs come sorted by expert, so each token's sum is taken in the order of the experts.
    order_N[:num_used] = torch.argsort(layer.token_N[:num_used], stable=True)
    return order_N


class _Scratch:
    """Buffers that all experts use in turn: page faults of fresh memory cost as much as the arithmetic."""

    def __init__(self, like: torch.Tensor, experts: Sequence[ExpertSlices], dim: int) -> None:
        self._hidden = (
            [like.new_empty(max(e.num_rows * e.width for e in experts)) for _ in range(3)] if experts else []
        )
        self._rows = (
            [like.new_empty(max(e.num_rows for e in experts), dim) for _ in range(2)] if experts else []
        )

    def hidden(self, index: int, e: ExpertSlices) -> torch.Tensor:
        """Return the buffer of that index as (rows, units) of an expert."""
        return self._hidden[index][: e.num_rows * e.width].view(e.num_rows, e.width)

    def gather(self, index: int, x_TD: torch.Tensor, token_N: torch.Tensor, e: ExpertSlices) -> torch.Tensor:
        """Copy an expert's rows of x into the buffer of that index (M, D); rows beyond its pairs are zero."""
        out_MD = self._rows[index][: e.num_rows]
        torch.index_select(x_TD, 0, token_N[e.pairs], out=out_MD[: e.num_pairs])
        out_MD[e.num_pairs :].zero_()  # the expert before may have left rows here
        return out_MD


class _Rows:
    """The experts of a layer whose weights are all here, as rows of three matrices; their gradients, if wanted, too."""

    def __init__(self, layer: Layer, gradients: Sequence[torch.Tensor] = ()) -> None:
        ends = list(accumulate(layer.widths))
        self._rows = [slice(end - width, end) for end, width in zip(ends, layer.widths, strict=True)]
        self._weights, self._gradients = (layer.w_gate_FD, layer.w_up_FD, layer.w_down_FD), gradients

    def read_weights(self, expert: int) -> Matrices:
        gate, up, down = (w[self._rows[expert]] for w in self._weights)
        return gate, up, down

    def open_gradients(self, expert: int) -> Matrices:
        gate, up, down = (w[self._rows[expert]] for w in self._gradients)
        return gate, up, down

    def close_gradients(self, expert: int) -> None:
        """Do nothing: they are where they belong."""


def forward_loop(layer: Layer, room: int) -> tuple[torch.Tensor, Saved]:
    """Compute a layer's output expert by expert; arguments as in `layer.Backend`."""
    return forward_from_source(layer, room, _Rows(layer))


def forward_from_source(layer: Layer, room: int, source: ExpertSource) -> tuple[torch.Tensor, Saved]:
    """Compute the same with weights that are asked for when an expert's turn comes; the layer's own are not looked at.

    Bits are the same if the source's matrices begin as far from a multiple of 64 bytes as in a layer that has them all.
    """
    x_TD, token_N = layer.x_TD, layer.token_N
    experts = list_busy_experts(layer)
    # Padded rows of all busy experts, (rows, D). No letter: M is the rows of one expert here.
    padded_out = x_TD.new_empty(experts[-1].rows.stop if experts else 0, x_TD.shape[1])
    saved = Saved(x_TD.new_empty(room), x_TD.new_empty(room), order_by_token(layer, experts))
    scratch = _Scratch(x_TD, experts, x_TD.shape[1])
    for e in experts:
        x_MD, a_Mh = scratch.gather(0, x_TD, token_N, e), scratch.hidden(0, e)
        # Pre-activations are computed where they are kept; without a backward pass they need no place of
        # their own.
        kept = [pre[e.pre].view(e.num_rows, e.width) for pre in saved[:2]] if room else []
        g_Mh, u_Mh = kept or (scratch.hidden(1, e), scratch.hidden(2, e))
        w_gate_hD, w_up_hD, w_down_hD = source.read_weights(e.expert)
        torch.mm(x_MD, w_gate_hD.T, out=g_Mh)
        torch.mm(x_MD, w_up_hD.T, out=u_Mh)
        torch.ops.aten.silu.out(g_Mh, out=a_Mh)
        torch.mm(a_Mh.mul_(u_Mh), w_down_hD, out=padded_out[e.rows])
        del w_gate_hD, w_up_hD, w_down_hD  # their memory may be needed for the next expert
    return sum_rows_by_token(layer, experts, saved.order_N, padded_out, gated=True), saved


def backward_loop(layer: Layer, saved: Saved, dy_TD: torch.Tensor, weights: bool) -> Gradients:
    """Compute a layer's gradients expert by expert; arguments as in `layer.Backend`."""
    size = layer.w_gate_FD.shape if weights else (0,)
    # Zeros: an expert without pairs is never visited, and its gradient is 0.
    gradients = [layer.w_gate_FD.new_zeros(size) for _ in range(3)]
    dx_TD, dgate_N = backward_to_source(layer, saved, dy_TD, _Rows(layer, gradients), weights)
    return Gradients(dx_TD, dgate_N, *gradients)


def backward_to_source(
    layer: Layer, saved: Saved, dy_TD: torch.Tensor, source: ExpertSource, weights: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of x and of the gates; those of the weights go to the source, if `weights`."""
    x_TD, token_N, gate_N = layer.x_TD, layer.token_N, layer.gate_N
    experts = list_busy_experts(layer)
    # Padded rows of all busy experts, (rows, D). No letter: M is the rows of one expert here.
    padded_dx = x_TD.new_empty(experts[-1].rows.stop if experts else 0, x_TD.shape[1])
    dgate_N = torch.zeros_like(gate_N)
    scratch = _Scratch(x_TD, experts, x_TD.shape[1])
    for e in experts:
        w_gate_hD, w_up_hD, w_down_hD = source.read_weights(e.expert)
        dw_gate_hD, dw_up_hD, dw_down_hD = source.open_gradients(e.expert) if weights else (None, None, None)
        g_Mh, u_Mh = (pre[e.pre].view(e.num_rows, e.width) for pre in saved[:2])
        dy_MD = scratch.gather(0, dy_TD, token_N, e)
        gate_M1 = F.pad(gate_N[e.pairs], (0, e.num_rows - e.num_pairs)).to(x_TD.dtype).unsqueeze(1)
        da_Mh, silu_Mh, a_Mh = (scratch.hidden(i, e) for i in range(3))
        torch.mm(dy_MD, w_down_hD.T, out=da_Mh)
        torch.mul(torch.ops.aten.silu.out(g_Mh, out=silu_Mh), u_Mh, out=a_Mh)
        # d gate = <d output, expert output> = <d a, a>: the expert's output need not be kept.
        dgate_N[e.pairs] = (da_Mh[: e.num_pairs] * a_Mh[: e.num_pairs]).sum(1, dtype=gate_N.dtype)
        da_Mh.mul_(gate_M1)  # only now: d gate above takes d a without the gate
        if weights:
            torch.mm(a_Mh.T, dy_MD.mul_(gate_M1), out=dw_down_hD)
        # From here on the buffers are used again: a_Mh holds the derivative of g_Mh, da_Mh that of u_Mh.
        torch.mul(da_Mh, u_Mh, out=a_Mh)
        dg_Mh = torch.ops.aten.silu_backward.grad_input(a_Mh, g_Mh, grad_input=a_Mh)
        du_Mh = da_Mh.mul_(silu_Mh)
        if weights:
            x_MD = scratch.gather(1, x_TD, token_N, e)
            torch.mm(dg_Mh.T, x_MD, out=dw_gate_hD)
            torch.mm(du_Mh.T, x_MD, out=dw_up_hD)
            source.close_gradients(e.expert)
        dx_MD = padded_dx[e.rows]
        torch.mm(dg_Mh, w_gate_hD, out=dx_MD)
        dx_MD.addmm_(du_Mh, w_up_hD)
        del w_gate_hD, w_up_hD, w_down_hD, dw_gate_hD, dw_up_hD, dw_down_hD  # as in the forward pass
    return sum_rows_by_token(layer, experts, saved.order_N, padded_dx, gated=False), dgate_N


BACKEND = Backend(forward_loop, backward_loop, lambda layer: None, count_loop_rows)
