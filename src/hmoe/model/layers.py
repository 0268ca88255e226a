"""Parts of a LLaMA block that are not attention and not experts."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class RMSNorm(nn.Module):
    """x / rms(x) x weight, over the last axis."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """All ones."""
        nn.init.ones_(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise x (..., D)."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class SwiGLU(nn.Module):
    """Dense feed-forward layer; weights lie as rows of hidden units, like those of the experts."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.w_gate = nn.Parameter(torch.empty(width, dim))
        self.w_up = nn.Parameter(torch.empty(width, dim))
        self.w_down = nn.Parameter(torch.empty(width, dim))

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Random weights of the scale that keeps activations near 1."""
        width, dim = self.w_gate.shape
        nn.init.normal_(self.w_gate, std=dim**-0.5, generator=generator)
        nn.init.normal_(self.w_up, std=dim**-0.5, generator=generator)
        nn.init.normal_(self.w_down, std=width**-0.5, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., D) -> (..., D)."""
        return (F.silu(F.linear(x, self.w_gate)) * F.linear(x, self.w_up)) @ self.w_down


def rotary_angles(start: int, length: int, head_dim: int, theta: float, like: torch.Tensor) -> torch.Tensor:
    """Angles (L, C/2) of positions start..start+length; float32 or better."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=dtype, device=like.device) / head_dim)
    return torch.outer(torch.arange(start, start + length, dtype=dtype, device=like.device), frequency)


class _Rotate(torch.autograd.Function):
    """Rotates pairs (i, i + C/2) by given angles; the backward pass rotates back. Four passes over memory, not seven."""

    @staticmethod
    def forward(ctx: Any, x_BHLC: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x_BHLC, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        cos, sin = ctx.saved_tensors
        return _rotate(grad_outputs[0], cos, -sin), None, None


def _rotate(x_BHLC: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    out_BHLC = torch.empty_like(x_BHLC)
    first, second = x_BHLC.chunk(2, dim=-1)
    out_first, out_second = out_BHLC.chunk(2, dim=-1)
    torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out_second).addcmul_(first, sin)
    return out_BHLC


def rotate(x_BHLC: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding; pairs are (i, i + C/2) as in Hugging Face's LLaMA."""
    cos, sin = angles.cos().to(x_BHLC.dtype), angles.sin().to(x_BHLC.dtype)
    if torch.compiler.is_compiling():  # which fuses passes itself, and cannot write into parts of a tensor
        first, second = x_BHLC.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    rotated: torch.Tensor = _Rotate.apply(x_BHLC, cos, sin)  # type: ignore[no-untyped-call]
    return rotated
