"""The definition of the expert computation: a loop over experts in plain autograd, any dtype and device."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def expert_ffn_reference(
    x_TD: torch.Tensor,
    token_N: torch.Tensor,
    gate_N: torch.Tensor,
    num_tokens_E: torch.Tensor,
    w_gate_FD: torch.Tensor,
    w_up_FD: torch.Tensor,
    w_down_FD: torch.Tensor,
    widths: Sequence[int],
) -> torch.Tensor:
    """Sum over a token's experts of gate x SwiGLU expert, by definition; arguments as in `expert_ffn`."""
    counts = num_tokens_E.tolist()
    y_TD = torch.zeros_like(x_TD)
    # What lies beyond the counts is room of a compiled graph and belongs to no expert.
    pairs = (torch.split(of_pairs[: sum(counts)], counts) for of_pairs in (token_N, gate_N))
    weights = (torch.split(w_FD, list(widths)) for w_FD in (w_gate_FD, w_up_FD, w_down_FD))
    experts = zip(*pairs, *weights, strict=True)
    for token_M, gate_M, w_gate, w_up, w_down in experts:
        x_MD = x_TD[token_M]
        out_MD = (F.silu(x_MD @ w_gate.T) * (x_MD @ w_up.T)) @ w_down
        y_TD = y_TD.index_add(0, token_M, out_MD * gate_M.to(x_TD.dtype).unsqueeze(1))
    return y_TD
