"""Layers to compute, without a router: uniform or skewed loads, random gates, in any precision."""

import torch

from hmoe.bench.shapes import SHAPES, LayerShape
from hmoe.kernels.layer import Layer

SIZES = {
    "0.4B": SHAPES["0.4B-long"],
    "3B": SHAPES["3B-long"],
    "64 experts": SHAPES["64-experts-long"],
    "0.4B short": SHAPES["0.4B"],
}


def shrink(size: LayerShape) -> LayerShape:
    """Return the same kind of layer for the interpreter: at most four experts, nine tokens."""
    experts = min(len(size.widths), 4)
    return LayerShape(32, tuple(16 * (1 + 2 * (expert % 2)) for expert in range(experts)), min(size.k, 2), 9)


def draw_routing(
    size: LayerShape, device: str, skewed: bool = False, empty: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw (token_N, gate_N, num_tokens_E) without a router.

    The busiest expert has about three times the mean if `skewed`, the first one no token if `empty`.
    """
    experts = len(size.widths)
    generator = torch.Generator(device).manual_seed(0)
    weight_E = torch.ones(experts, device=device)
    if skewed and experts > 2:
        weight_E[experts // 2] = 3.0 * experts / max(experts - 3, 1)
    if empty:
        weight_E[0] = 0
    # Gumbel noise: the largest k are drawn without repetition, with probabilities as the weights.
    noise_TE = -torch.log(
        -torch.log(torch.rand(size.tokens, experts, device=device, generator=generator).clamp(1e-9, 1 - 1e-7))
    )
    best_TK = (noise_TE + weight_E.log()).topk(size.k, dim=1).indices
    chosen_TE = torch.zeros(size.tokens, experts, dtype=torch.bool, device=device).scatter(1, best_TK, True)
    # Contiguous, because kernels trust pointers.
    expert_N, token_N = (column.contiguous() for column in chosen_TE.T.nonzero(as_tuple=True))
    gate_N = torch.rand(len(token_N), device=device, generator=generator) / size.k + 0.1
    return token_N, gate_N, torch.bincount(expert_N, minlength=experts)


def make_layer(
    size: LayerShape, dtype: torch.dtype, device: str, skewed: bool = False, empty: bool = False
) -> Layer:
    """Make a layer of random tokens and weights that `dtype` holds exactly."""
    generator = torch.Generator(device).manual_seed(1)

    def normal(rows: int) -> torch.Tensor:
        return torch.randn(rows, size.dim, device=device, generator=generator)

    weights = [(normal(sum(size.widths)) / size.dim**0.5).to(dtype) for _ in range(3)]
    return Layer(
        normal(size.tokens).to(dtype), *draw_routing(size, device, skewed, empty), *weights, size.widths
    )  # type: ignore[arg-type]
