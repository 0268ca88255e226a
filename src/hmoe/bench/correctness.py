"""Is what is about to be timed right? Output and gradients of a layer against the float64 definition."""

import torch

import hmoe
from hmoe.bench.shapes import LayerShape
from hmoe.errors import HMoEError
from hmoe.kernels import expert_ffn


def check_layer_results(
    shape: LayerShape, dtype: torch.dtype, device: str, backend: str | None = None
) -> None:
    """Raise HMoEError unless what is about to be timed is right: a wrong layer may be fast.

    On some tokens, output and gradients are compared with the float64 definition; the largest error may be
    twice that of plain PyTorch in the same precision.
    """
    tokens = min(shape.tokens, 257)
    x = torch.randn(tokens, shape.dim, device=device).to(dtype)
    moe = hmoe.MoE(shape.dim, shape.widths, hmoe.TopK(shape.k)).to(device, dtype)
    torch.nn.init.normal_(moe.router.weight, std=shape.dim**-0.5)
    with torch.no_grad():
        routing = moe.router(x)
    results = {}
    for name, computed_by, kind in (
        ("truth", "reference", torch.float64),
        ("plain", "reference", dtype),
        ("ours", backend, dtype),
    ):
        inputs, gate, up, down = (
            t.detach().to(kind).requires_grad_() for t in (x, moe.w_gate, moe.w_up, moe.w_down)
        )
        gates = routing.gate_N.to(torch.float64 if kind == torch.float64 else torch.float32).requires_grad_()
        y = expert_ffn(
            inputs, routing.token_N, gates, routing.num_tokens_E, gate, up, down, shape.widths, computed_by
        )
        torch.autograd.backward(y, x.to(kind))
        results[name] = [y.detach(), *(t.grad for t in (gates, inputs, gate, up, down) if t.grad is not None)]
    for label, truth, plain, ours in zip(
        ("y", "dgate", "dx", "dw_gate", "dw_up", "dw_down"), *results.values(), strict=True
    ):
        error, allowed = ((r.double() - truth).abs().max() for r in (ours, plain))
        if error > 2 * allowed + 1e-6 * truth.abs().max():
            raise HMoEError(
                f"{label} of {shape}, {dtype}: error {error:.2e} above twice PyTorch's {allowed:.2e}; nothing was timed"
            )
