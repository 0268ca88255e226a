"""Parts of a LLaMA block that are not attention and not experts."""

import torch
import torch.nn.functional as F
from torch import nn


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last axis: x / rms(x), times a weight for each unit."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Set all weights to one."""
        nn.init.ones_(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x (..., D) normalised."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class SwiGLU(nn.Module):
    """Dense feed-forward layer; weights lie as rows of hidden units, like those of the experts."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.w_gate = nn.Parameter(torch.empty(width, dim))
        self.w_up = nn.Parameter(torch.empty(width, dim))
        # Transposed against the usual layout: a hidden unit is one row of all three, so
        # pruning and splitting cut rows.
        self.w_down = nn.Parameter(torch.empty(width, dim))

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw random weights of the scale that keeps activations near 1."""
        width, dim = self.w_gate.shape
        nn.init.normal_(self.w_gate, std=dim**-0.5, generator=generator)
        nn.init.normal_(self.w_up, std=dim**-0.5, generator=generator)
        nn.init.normal_(self.w_down, std=width**-0.5, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output (..., D) for x (..., D)."""
        return (F.silu(F.linear(x, self.w_gate)) * F.linear(x, self.w_up)) @ self.w_down


class Projection(nn.Linear):
    """A linear map without bias; one row on a CPU takes the matrix-vector product, a third faster."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__(width_in, width_out, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the map of x (..., in) as (..., out)."""
        if x.numel() == self.in_features and not torch.is_grad_enabled() and x.device.type == "cpu":
            return torch.mv(self.weight, x.flatten()).view(*x.shape[:-1], -1)
        return super().forward(x)
