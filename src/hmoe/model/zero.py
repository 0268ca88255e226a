"""Experts without hidden units: null, copy and constant.

MoE++, Jin et al. 2025; null experts also in AdaMoE, Zeng et al. 2024.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from hmoe.model.routing import Routing
    from hmoe.specs.experts import ZeroExperts


class ZeroLayer(nn.Module):
    """The zero-computation experts of a layer: null gives 0, copy x, constant a1 x + a2 v.

    Attributes:
        first: number of the first of them among the layer's experts.
        value: (constant experts, D), the v of each; None without such experts.
        mix: (constant experts, 2, D), the map W of each, by which (a1, a2) = softmax(W x).
    """

    def __init__(self, dim: int, spec: "ZeroExperts", first: int) -> None:
        super().__init__()
        self.spec, self.first = spec, first
        self.value = nn.Parameter(torch.empty(spec.constant, dim)) if spec.constant else None
        self.mix = nn.Parameter(torch.empty(spec.constant, 2, dim)) if spec.constant else None

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw new weights: small values, and both weights of a constant expert near one half."""
        if self.value is not None and self.mix is not None:
            nn.init.normal_(self.value, std=0.02, generator=generator)
            nn.init.normal_(self.mix, std=0.1 * self.mix.shape[2] ** -0.5, generator=generator)

    def forward(self, x_TD: torch.Tensor, routing: "Routing") -> torch.Tensor:
        """Return gate x expert (T, D), summed over the zero-computation experts of each token."""
        spec, num_tokens = self.spec, len(x_TD)
        index_N = routing.expert_N - self.first
        # Pairs of other experts stay in the list, with gate 0: cutting them off would wait for a count.
        cell_N = routing.token_N * spec.count + index_N.clamp(min=0)
        gate_N = routing.gate_N.masked_fill(index_N < 0, 0)
        gates = gate_N.new_zeros(num_tokens * spec.count).index_add(0, cell_N, gate_N).view(-1, spec.count)
        # columns: [null experts][copy experts][constant experts]
        gates = gates.to(x_TD.dtype)
        nothing, gates = gates[:, : spec.null], gates[:, spec.null :]
        # Null experts give 0, but a gate that is NaN must be seen: a choice without meaning has no output.
        share_T1 = gates[:, : spec.copy].sum(1, keepdim=True) + 0 * nothing.sum(1, keepdim=True)
        y_TD = torch.zeros_like(x_TD)
        if self.value is not None and self.mix is not None:
            constant_gates = gates[:, spec.copy :]
            logits = F.linear(x_TD, self.mix.to(x_TD.dtype).flatten(0, 1))
            weights = logits.view(num_tokens, spec.constant, 2).softmax(2)
            # All that multiplies x is summed first, so that x is read once.
            share_T1 = share_T1 + (constant_gates * weights[:, :, 0]).sum(1, keepdim=True)
            y_TD = (constant_gates * weights[:, :, 1]) @ self.value.to(x_TD.dtype)
        return y_TD + share_T1 * x_TD
