"""Values whose gradient would silently be wrong: they raise an error when a backward pass reaches them."""

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import FunctionCtx

if TYPE_CHECKING:
    from hmoe.model.routing import Routing

_REENTRANT = (
    "the gradient of this Routing was lost: a layer under reentrant activation checkpointing "
    "(use_reentrant=True) returns values that the backward pass never comes back to, so losses of them would "
    "teach the router nothing; use_reentrant=False"
)


class _Refusal(torch.autograd.Function):
    """Gives the same numbers; the backward pass ends here, with an error."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, reason: str, *sources: torch.Tensor) -> torch.Tensor:
        ctx.reason = reason
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        raise RuntimeError(ctx.reason)


def refuse_gradient(tensor: torch.Tensor, reason: str, *sources: torch.Tensor) -> torch.Tensor:
    """Return the same numbers, whose derivative raises RuntimeError with this reason.

    `sources` are what they were computed from: without a way back to them, somebody who asks for the
    derivative by a source alone would get zero and no error.
    """
    # Also where gradients are off, as in reentrant checkpointing's first pass: the error is for a later pass.
    with torch.enable_grad():
        leaf = tensor.detach().requires_grad_()
        refusing: torch.Tensor = _Refusal.apply(leaf, reason, *sources)  # type: ignore[no-untyped-call]
    return refusing


def guard_reentrant(routing: "Routing") -> "Routing":
    """Return a routing that refuses to be differentiated where its gradient is lost, else the same one.

    It is lost in the first pass of reentrant checkpointing, which runs without gradients inside the forward
    of an autograd function. Tensors that leave it get their gradient from a second pass; a Routing is no
    tensor, so autograd does not see it leave.
    """
    # The stack is searched last: that costs microseconds per frame.
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or not _inside_autograd_function():
        return routing
    tensors = (routing.gate_N, routing.logits_TE, routing.probs_TE)
    gate_N, logits_TE, probs_TE = (refuse_gradient(tensor, _REENTRANT) for tensor in tensors)
    return replace(routing, gate_N=gate_N, logits_TE=logits_TE, probs_TE=probs_TE)


def _inside_autograd_function() -> bool:
    """Return whether a caller is an autograd function's forward, of any library: its first argument tells."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "forward" and code.co_argcount:
            context = frame.f_locals.get(code.co_varnames[0])
            if isinstance(context, FunctionCtx):
                return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
