"""Causal grouped-query attention, and what its tokens may look at: the sequence alone, or also a cache."""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from hmoe.model.layers import Projection, RMSNorm, is_plain
from hmoe.model.precision import find_autocast_dtype
from hmoe.model.rotary import Rotary, interleave_pairs, rotate_heads, turn_pairs

# Output (B, L, H, C), and the attention weights where a context returns them.
Attended = tuple[torch.Tensor, torch.Tensor | None]


class Context(Protocol):
    """What the tokens of one forward pass see, and how they are routed; every cache and mask implements it.

    Attributes:
        top_p_T: threshold of the top-p router for each of the B*L tokens; None: the router's own.
        noise_seed: of the router's random numbers in a training step; None: none are drawn.
        real_T: which of the B*L tokens are not padding; None: all.
    """

    top_p_T: torch.Tensor | None
    noise_seed: int | None
    real_T: torch.Tensor | None

    def positions(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        """Return the positions (B or 1, L) of the tokens in their sequences."""
        ...

    def attend(
        self, attention: "Attention", q_BHLC: torch.Tensor, k_BGLC: torch.Tensor, v_BGLC: torch.Tensor
    ) -> Attended:
        """Return the attention of rotated queries over all keys and values that they may see."""
        ...


def scaled_dot_product(
    q_BHLC: torch.Tensor,
    k_BGLC: torch.Tensor,
    v_BGLC: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
) -> torch.Tensor:
    """Return scaled dot-product attention as (B, L, H, C); G key/value heads serve H query heads."""
    # Said only where it is so: with it some backends of SDPA are not chosen.
    grouped = q_BHLC.shape[1] != k_BGLC.shape[1]
    return F.scaled_dot_product_attention(
        q_BHLC, k_BGLC, v_BGLC, attn_mask=mask, is_causal=is_causal, enable_gqa=grouped
    ).transpose(1, 2)


class Sequences:
    """Whole sequences, each token sees itself and the ones before: training, and scoring without a cache."""

    top_p_T: torch.Tensor | None = None
    real_T: torch.Tensor | None = None

    def __init__(self, noise_seed: int | None = None) -> None:
        self.noise_seed = noise_seed

    def positions(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        """Return positions that count from 0 in every sequence, (1, L)."""
        return torch.arange(tokens_BL.shape[1], device=tokens_BL.device)[None]

    def attend(
        self, attention: "Attention", q_BHLC: torch.Tensor, k_BGLC: torch.Tensor, v_BGLC: torch.Tensor
    ) -> Attended:
        """Let every token see itself and the tokens before it in its sequence."""
        return scaled_dot_product(q_BHLC, k_BGLC, v_BGLC, None, True), None


class KVCache:
    """Keys and values of all layers for up to `capacity` positions of `B` sequences of one length.

    `length` positions are filled; the last layer's turn advances it.
    """

    top_p_T: torch.Tensor | None = None
    real_T: torch.Tensor | None = None
    noise_seed: int | None = None

    def __init__(
        self, layers: int, shape_BGC: tuple[int, int, int], capacity: int, like: torch.Tensor
    ) -> None:
        batch, heads, width = shape_BGC
        self.kv = like.new_empty(layers, 2, batch, heads, capacity, width)
        self.length = 0

    def positions(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        """Return the positions after the filled ones, (1, L)."""
        return torch.arange(self.length, self.length + tokens_BL.shape[1], device=tokens_BL.device)[None]

    def attend(
        self, attention: "Attention", q_BHLC: torch.Tensor, k_BGLC: torch.Tensor, v_BGLC: torch.Tensor
    ) -> Attended:
        """Store keys and values; let every token see itself and all that is stored before it."""
        # kv[layer], keys and values:  [0 .. past) stored  [past .. stop) new  [stop .. capacity) unset
        past, new = self.length, q_BHLC.shape[2]
        layer, stop = attention.layer, past + new
        self.kv[layer, 0, :, :, past:stop] = k_BGLC
        self.kv[layer, 1, :, :, past:stop] = v_BGLC
        if layer == len(self.kv) - 1:  # not before: all layers of a pass store at the same positions
            self.length = stop
        mask = None
        # SDPA's is_causal aligns queries and keys at their first positions, which holds only where nothing is
        # stored; one new token sees all of them and needs neither.
        if past and new > 1:
            mask = torch.ones(new, stop, dtype=torch.bool, device=q_BHLC.device).tril(past)
        k_all, v_all = self.kv[layer, :, :, :, :stop].unbind(0)
        # is_causal from the past alone: lengths are symbols under torch.compile
        return scaled_dot_product(q_BHLC, k_all, v_all, mask, not past), None


class _OwnGradient(torch.autograd.Function):
    """Passes a tensor on, and a copy of its gradient: a part of a larger one would keep all of it in memory."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return grad_outputs[0].clone()


class Attention(nn.Module):
    """Grouped-query causal self-attention with rotary positions, no biases.

    Attributes:
        layer: its number in the model, by which caches know it.
        q_norm, k_norm: RMSNorm of queries and keys before rotation, over each head (Qwen3) or over all heads
            together (OLMoE), or None.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        kv_heads: int,
        head_width: int,
        qk_norm: str | None,
        eps: float,
        layer: int,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width, self.layer = heads, kv_heads, head_width, layer
        self.q_proj = Projection(dim, heads * head_width)
        self.k_proj = Projection(dim, kv_heads * head_width)
        self.v_proj = Projection(dim, kv_heads * head_width)
        self.o_proj = Projection(heads * head_width, dim)
        self.q_norm = self.k_norm = None
        if qk_norm is not None:
            over_q, over_k = (heads, kv_heads) if qk_norm == "width" else (1, 1)
            self.q_norm, self.k_norm = RMSNorm(over_q * head_width, eps), RMSNorm(over_k * head_width, eps)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw random weights of the scale that keeps activations near 1."""
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5, generator=generator)

    def forward(self, x_BLD: torch.Tensor, rotary: Rotary, context: Context) -> Attended:
        """Return (output (B, L, D), attention weights if the context returns them)."""
        if isinstance(context, Sequences) and self._projects_at_once(x_BLD):
            q_BHLC, k_BGLC, v_BGLC = self._project_at_once(x_BLD, rotary)
        else:
            q_BHLC = rotate_heads(self._heads(self.q_proj(x_BLD), self.q_norm), rotary)
            k_BGLC = rotate_heads(self._heads(self.k_proj(x_BLD), self.k_norm), rotary)
            v_BGLC = self._heads(self.v_proj(x_BLD), None)
        out_BLHC, weights = context.attend(self, q_BHLC, k_BGLC, v_BGLC)
        return self.o_proj(out_BLHC.flatten(2)), weights

    def _projects_at_once(self, x_BLD: torch.Tensor) -> bool:
        """Tell whether queries, keys and values come of one product: eagerly on a CPU, if nobody changed them."""
        if torch.compiler.is_compiling() or x_BLD.device.type != "cpu" or self.q_norm is not None:
            return False
        projections = (self.q_proj, self.k_proj, self.v_proj)
        exact = x_BLD.dtype in (torch.float32, torch.float64) and find_autocast_dtype(x_BLD.device) is None
        return exact and all(is_plain(projection, x_BLD.dtype) for projection in projections)

    def _project_at_once(
        self, x_BLD: torch.Tensor, rotary: Rotary
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return rotated queries and keys, and values, by one product and one rotation.

        Rows of the weights are taken so that the two of a pair lie side by side, as a complex number, which one
        multiplication turns. Queries and keys are in that order too: their products are the same in any.
        """
        w_q, w_k = (interleave_pairs(layer.weight, self.head_width) for layer in (self.q_proj, self.k_proj))
        w_v: torch.Tensor = _OwnGradient.apply(self.v_proj.weight)  # type: ignore[no-untyped-call]
        y_BLn = F.linear(x_BLD, torch.cat([w_q, w_k, w_v]))
        turned, v = torch.split(y_BLn, [len(w_q) + len(w_k), len(w_k)], dim=-1)
        q, k = torch.split(turn_pairs(turned, rotary), [len(w_q), len(w_k)], dim=-1)
        q_BHLC, k_BGLC, v_BGLC = (self._heads(part, None) for part in (q, k, v))
        return q_BHLC, k_BGLC, v_BGLC

    def _heads(self, x: torch.Tensor, norm: RMSNorm | None) -> torch.Tensor:
        """Return (B, L, heads x C) as (B, heads, L, C), normalised over one head or over all."""
        # With one head both are the same; then the first branch runs.
        if norm is not None and norm.weight.shape[0] == x.shape[-1]:
            x, norm = norm(x), None
        x = x.view(*x.shape[:-1], -1, self.head_width)
        return (x if norm is None else norm(x)).transpose(1, 2)
