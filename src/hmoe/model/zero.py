"""Experts without hidden units: null, copy and constant (MoE++, Jin et al. 2025; null experts also AdaMoE, Zeng et al. 2024)."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from hmoe.model.routing import Routing
    from hmoe.specs.experts import ZeroExperts


class ZeroLayer(nn.Module):
    """What the zero-computation experts of a layer add to its output.

    Attributes:
        value: (constant experts, D), the v of each.
        mix: (constant experts, 2, D), the map to its two weights.
    """

    def __init__(self, dim: int, spec: "ZeroExperts", first: int) -> None:
        super().__init__()
        self.spec, self.first = spec, first
        self.value = nn.Parameter(torch.empty(spec.constant, dim)) if spec.constant else None
        self.mix = nn.Parameter(torch.empty(spec.constant, 2, dim)) if spec.constant else None

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Small values, both weights near one half."""
        if self.value is not None and self.mix is not None:
            nn.init.normal_(self.value, std=0.02, generator=generator)
            nn.init.normal_(self.mix, std=0.1 * self.mix.shape[2] ** -0.5, generator=generator)

    def forward(self, x_TD: torch.Tensor, routing: "Routing") -> torch.Tensor:
        """(T, D): gate x expert, summed over the zero-computation experts of each token."""
        index_N = routing.expert_N - self.first
        place_N = routing.token_N * self.spec.count + index_N.clamp(min=0)
        gate_N = routing.gate_N.masked_fill(index_N < 0, 0)
        gate_TZ = gate_N.new_zeros(len(x_TD) * self.spec.count).index_add(0, place_N, gate_N).view(-1, self.spec.count)
        gate_TZ = gate_TZ.to(x_TD.dtype)[:, self.spec.null :]
        share_T1 = gate_TZ[:, : self.spec.copy].sum(1, keepdim=True)
        y_TD = torch.zeros_like(x_TD)
        if self.value is not None and self.mix is not None:
            gate_TG = gate_TZ[:, self.spec.copy :]
            mix_TG2 = (
                F.linear(x_TD, self.mix.to(x_TD.dtype).flatten(0, 1)).view(len(x_TD), self.spec.constant, 2).softmax(2)
            )
            share_T1 = share_T1 + (gate_TG * mix_TG2[:, :, 0]).sum(1, keepdim=True)
            y_TD = (gate_TG * mix_TG2[:, :, 1]) @ self.value.to(x_TD.dtype)
        return y_TD + share_T1 * x_TD
