"""Layers to compute, without a router: uniform or skewed loads, random gates, in any precision."""

from typing import NamedTuple

import torch

import hmoe
from hmoe.kernels.layer import Layer


class Size(NamedTuple):
    """A layer and its batch."""

    dim: int
    widths: tuple[int, ...]
    k: int
    tokens: int


SIZES = {
    "0.4B": Size(768, hmoe.arithmetic(12288, 8), 2, 32768),
    "3B": Size(1024, hmoe.arithmetic(32768, 8), 2, 32768),
    "64 experts": Size(768, hmoe.arithmetic(12288, 64, ratio=3, multiple=32), 8, 32768),
    "0.4B short": Size(768, hmoe.arithmetic(12288, 8), 2, 4096),
}


def tiny(size: Size) -> Size:
    """The same kind of layer for the interpreter."""
    experts = min(len(size.widths), 4)
    return Size(32, tuple(16 * (1 + 2 * (number % 2)) for number in range(experts)), min(size.k, 2), 9)


def routed(
    size: Size, device: str, skewed: bool = False, empty: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(token_N, gate_N, num_tokens_E); the busiest expert has about three times the mean if skewed, the first nothing if empty."""
    experts = len(size.widths)
    generator = torch.Generator(device).manual_seed(0)
    weight_E = torch.ones(experts, device=device)
    if skewed and experts > 2:
        weight_E[experts // 2] = 3.0 * experts / max(experts - 3, 1)
    if empty:
        weight_E[0] = 0
    noise_TE = -torch.log(
        -torch.log(torch.rand(size.tokens, experts, device=device, generator=generator).clamp(1e-9, 1 - 1e-7))
    )
    best_TK = (noise_TE + weight_E.log()).topk(size.k, dim=1).indices
    chosen_TE = torch.zeros(size.tokens, experts, dtype=torch.bool, device=device).scatter(1, best_TK, True)
    expert_N, token_N = (column.contiguous() for column in chosen_TE.T.nonzero(as_tuple=True))  # kernels trust pointers
    gate_N = torch.rand(len(token_N), device=device, generator=generator) / size.k + 0.1
    return token_N, gate_N, torch.bincount(expert_N, minlength=experts)


def layer(size: Size, dtype: torch.dtype, device: str, skewed: bool = False, empty: bool = False) -> Layer:
    """Random tokens and weights that `dtype` holds exactly."""
    generator = torch.Generator(device).manual_seed(1)

    def normal(rows: int) -> torch.Tensor:
        return torch.randn(rows, size.dim, device=device, generator=generator)

    weights = [(normal(sum(size.widths)) / size.dim**0.5).to(dtype) for _ in range(3)]
    return Layer(normal(size.tokens).to(dtype), *routed(size, device, skewed, empty), *weights, size.widths)  # type: ignore[arg-type]
