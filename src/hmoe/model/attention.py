"""Causal grouped-query attention through PyTorch's SDPA, with or without a key/value cache."""

import torch
import torch.nn.functional as F
from torch import nn

from hmoe.model.layers import rotate


class KVCache:
    """Keys and values of all layers for up to `capacity` positions; `length` positions are filled.

    The model advances `length` once per forward pass, after its last layer.
    """

    def __init__(self, layers: int, shape_BGC: tuple[int, int, int], capacity: int, like: torch.Tensor) -> None:
        batch, heads, width = shape_BGC
        self.kv = like.new_empty(layers, 2, batch, heads, capacity, width)
        self.length = 0

    def extend(self, layer: int, k_BGLC: torch.Tensor, v_BGLC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new keys and values of a layer; return all of them."""
        stop = self.length + k_BGLC.shape[2]
        self.kv[layer, 0, :, :, self.length : stop] = k_BGLC
        self.kv[layer, 1, :, :, self.length : stop] = v_BGLC
        return self.kv[layer, 0, :, :, :stop], self.kv[layer, 1, :, :, :stop]


class Attention(nn.Module):
    """Grouped-query causal self-attention with rotary positions, no biases."""

    def __init__(self, dim: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, dim // heads
        self.q = nn.Linear(dim, heads * self.head_dim, bias=False)
        self.k = nn.Linear(dim, kv_heads * self.head_dim, bias=False)
        self.v = nn.Linear(dim, kv_heads * self.head_dim, bias=False)
        self.o = nn.Linear(heads * self.head_dim, dim, bias=False)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Random weights of the scale that keeps activations near 1."""
        for linear in (self.q, self.k, self.v, self.o):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5, generator=generator)

    def forward(
        self, x_BLD: torch.Tensor, angles: torch.Tensor, cache: KVCache | None = None, layer: int = 0
    ) -> torch.Tensor:
        """Attend to this and earlier positions; with a cache, also to the positions it holds."""
        q_BHLC, k_BGLC, v_BGLC = (
            linear(x_BLD).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for linear in (self.q, self.k, self.v)
        )
        q_BHLC, k_BGLC = rotate(q_BHLC, angles), rotate(k_BGLC, angles)
        mask = None
        if cache is not None:
            k_BGLC, v_BGLC = cache.extend(layer, k_BGLC, v_BGLC)
            new, past = x_BLD.shape[1], cache.length
            if past and new > 1:
                mask = torch.ones(new, past + new, dtype=torch.bool, device=x_BLD.device).tril(past)
        out_BHLC = F.scaled_dot_product_attention(
            q_BHLC,
            k_BGLC,
            v_BGLC,
            attn_mask=mask,
            is_causal=cache is None or not cache.length,  # from the past alone: lengths are symbols under torch.compile
            enable_gqa=self.heads != self.kv_heads,
        )
        projected: torch.Tensor = self.o(out_BHLC.transpose(1, 2).flatten(2))
        return projected
