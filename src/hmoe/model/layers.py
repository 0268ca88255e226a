"""Parts of a LLaMA block that are not attention and not experts."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class _Normalize(torch.autograd.Function):
    """RMSNorm in few passes over memory; PyTorch's own backward pass on a CPU takes several times as many.

    With s = (mean(x^2) + eps)^(-1/2): y = s w x, and dx = s w dy - x s^3 <x, w dy> / D.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        scale = squares.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        ctx.eps = eps
        y: torch.Tensor = (x * scale).mul_(weight)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        x, weight, scale = ctx.saved_tensors
        dy = grad_outputs[0]
        if torch.is_grad_enabled():  # create_graph=True: these gradients are to be differentiated again
            needed = [tensor for tensor in (x, weight) if tensor.requires_grad]
            y = F.rms_norm(x, weight.shape, weight, ctx.eps)
            gradients = iter(torch.autograd.grad(y, needed, dy, create_graph=True))
            return *(next(gradients) if tensor.requires_grad else None for tensor in (x, weight)), None
        product = (x * dy).flatten(0, -2)
        slope = torch.mv(product, weight).view(scale.shape).mul_(scale.pow(3)).div_(-x.shape[-1])
        # A sum in pairs: a matrix-vector product would add up all tokens one after another.
        dweight = product.mul_(scale.view(-1, 1)).sum(0)
        return (dy * scale).mul_(weight).addcmul_(x, slope), dweight, None


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
        if _has_few_passes(x, self.weight):
            normed: torch.Tensor = _Normalize.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
            return normed
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def _has_few_passes(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Tell whether x is normalised by `_Normalize`: where a backward pass comes, eagerly on a CPU."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or x.device.type != "cpu":
        return False
    # bfloat16 is left to PyTorch, which computes it in float32.
    return x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64) and x.dim() > 1


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


def is_plain(projection: nn.Module, dtype: torch.dtype) -> bool:
    """Tell whether a module is a projection that nobody wrapped, watches or converted: only its weight counts."""
    hooks = (
        projection._forward_hooks,
        projection._forward_pre_hooks,
        projection._backward_hooks,
        projection._backward_pre_hooks,
    )
    return type(projection) is Projection and not any(hooks) and projection.weight.dtype == dtype
