"""Experts whose bits do not depend on which others are computed beside them, nor on where their weights lie.

Libraries may round a product otherwise at another address. So every expert is computed alone, by `loop`, and all that
it reads and writes begins where PyTorch's allocator begins a tensor. Exact mode uses it on one process as on many.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F

from hmoe.kernels.layer import Backend, Gradients, Layer, Saved
from hmoe.kernels.loop import backward_loop, count_loop_rows, forward_loop

_ALIGNMENT = 64  # bytes, of PyTorch's allocator on a CPU


class _Expert(NamedTuple):
    """A busy expert as a layer of its own, whose tokens are its pairs, and where it lies in the whole one."""

    layer: Layer
    pairs: slice
    units: slice
    pre: slice


def _list_experts(layer: Layer) -> Iterator[_Expert]:
    """Yield the experts that have pairs."""
    pair = unit = pre = 0
    for count, width in zip(layer.num_tokens_E.tolist(), layer.widths, strict=True):
        room = count_loop_rows(layer.x_TD, count) * width if count else 0
        ends = pair + count, unit + width, pre + room
        if count:
            pairs, units = slice(pair, ends[0]), slice(unit, ends[1])
            places = torch.arange(count, device=layer.token_N.device)
            gate, up, down = (_align(w[units]) for w in (layer.w_gate_FD, layer.w_up_FD, layer.w_down_FD))
            counts = layer.num_tokens_E.new_tensor([count])
            x_MD, gate_M = layer.x_TD[layer.token_N[pairs]], layer.gate_N[pairs].clone()
            own = Layer(x_MD, places, gate_M, counts, gate, up, down, (width,))
            yield _Expert(own, pairs, units, slice(pre, ends[2]))
        pair, unit, pre = ends


def _align(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone() if tensor.data_ptr() % _ALIGNMENT else tensor


def sum_pairs(
    rows_ND: torch.Tensor, token_N: torch.Tensor, num_tokens: int, gate_N: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the sum of each token's rows (T, D) in the order of the pairs, times their gates if there are any."""
    if not len(rows_ND):
        return rows_ND.new_zeros(num_tokens, rows_ND.shape[1])
    order_N = torch.argsort(token_N, stable=True)
    starts_T = torch.searchsorted(token_N[order_N], torch.arange(num_tokens, device=token_N.device))
    weights = None if gate_N is None else gate_N[order_N].to(rows_ND.dtype)
    return F.embedding_bag(order_N, rows_ND, starts_T, mode="sum", per_sample_weights=weights)


def forward_exact(layer: Layer, room: int) -> tuple[torch.Tensor, Saved]:
    """Compute a layer's output; arguments as in `layer.Backend`."""
    num_pairs = int(layer.num_tokens_E.sum())  # what lies beyond the counts belongs to no expert
    x_TD, token_N = layer.x_TD, layer.token_N[:num_pairs]
    saved = Saved(x_TD.new_empty(room), x_TD.new_empty(room), torch.zeros_like(layer.token_N))
    rows_ND = x_TD.new_empty(num_pairs, x_TD.shape[1])
    for expert in _list_experts(layer):
        own = expert.layer._replace(gate_N=torch.ones_like(expert.layer.gate_N))
        rows_ND[expert.pairs], kept = forward_loop(own, expert.pre.stop - expert.pre.start if room else 0)
        if room:
            saved.pre_gate[expert.pre], saved.pre_up[expert.pre] = kept.pre_gate, kept.pre_up
    return sum_pairs(rows_ND, token_N, len(x_TD), layer.gate_N[:num_pairs]), saved


def backward_exact(layer: Layer, saved: Saved, dy_TD: torch.Tensor, weights: bool) -> Gradients:
    """Compute a layer's gradients; arguments as in `layer.Backend`."""
    num_pairs = int(layer.num_tokens_E.sum())
    token_N = layer.token_N[:num_pairs]
    dgate_N = torch.zeros_like(layer.gate_N)
    dx_ND = layer.x_TD.new_empty(num_pairs, layer.x_TD.shape[1])
    size = layer.w_gate_FD.shape if weights else (0,)
    gradients = [layer.w_gate_FD.new_zeros(size) for _ in range(3)]
    for expert in _list_experts(layer):
        own = expert.layer
        gate, up = (of_layer[expert.pre].clone() for of_layer in saved[:2])
        dy_MD = dy_TD[layer.token_N[expert.pairs]]
        of_expert = backward_loop(own, Saved(gate, up, own.token_N), dy_MD, weights)
        dx_ND[expert.pairs], dgate_N[expert.pairs] = of_expert.dx_TD, of_expert.dgate_N
        if weights:
            for total, each in zip(gradients, of_expert[2:], strict=True):
                total[expert.units] = each
    return Gradients(sum_pairs(dx_ND, token_N, len(layer.x_TD)), dgate_N, *gradients)


BACKEND = Backend(forward_exact, backward_exact, lambda layer: None, count_loop_rows)
