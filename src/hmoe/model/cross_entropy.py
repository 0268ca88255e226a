"""Language-model loss without ever holding the logits of all tokens."""

from typing import Any

import torch

from hmoe.errors import ConfigError
from hmoe.kernels import can_fuse, softmax_loss
from hmoe.model.no_gradient import refuse_gradient
from hmoe.model.precision import disable_autocast, find_autocast_dtype
from hmoe.model.waiting import would_wait

_SECOND = (
    "second derivatives of hmoe.model.cross_entropy: not computed, its gradients are made in the forward pass; "
    "use torch.nn.functional.cross_entropy(x @ w.T, target)"
)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Mean of -log softmax; gradients are made chunk by chunk in the forward pass, while logits exist."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: torch.Tensor,
        w_VD: torch.Tensor,
        target_T: torch.Tensor,
        chunk: int,
        ignore_index: int,
        *sources: torch.Tensor,
    ) -> torch.Tensor:
        dtype = torch.float64 if x_TD.dtype == torch.float64 else torch.float32
        need_x, need_w = ctx.needs_input_grad[:2]
        dx_TD = torch.empty_like(x_TD) if need_x else None
        # In float32 or better: chunks are added up, and bfloat16 would lose the small ones.
        dw_VD = torch.zeros(w_VD.shape, dtype=dtype, device=w_VD.device) if need_w else None
        nll = torch.zeros((), dtype=dtype, device=x_TD.device)
        ignored_T1 = (target_T == ignore_index)[:, None]
        target_T1 = target_T[:, None].masked_fill(ignored_T1, 0)  # any token will do, what comes of it is 0
        # A tensor: asking for the number would wait for the device.
        num_counted = (~ignored_T1).sum(dtype=dtype)
        for start in range(0, len(x_TD), chunk):
            part = slice(start, start + chunk)
            x_MD, back = x_TD[part], need_x or need_w
            d_MV = x_MD @ w_VD.T  # logits, in whose memory their derivative is made
            if can_fuse(d_MV):
                nll += softmax_loss(d_MV, target_T[part], num_counted, ignore_index, back).sum()
            else:
                d_MV = d_MV.to(dtype)
                nll += _softmax_loss(d_MV, target_T1[part], ignored_T1[part], num_counted, back).sum()
                d_MV = d_MV.to(x_TD.dtype) if back else d_MV
            if not back:
                continue
            if dx_TD is not None:
                torch.mm(d_MV, w_VD, out=dx_TD[part])
            if dw_VD is not None:
                dw_VD += d_MV.T @ x_MD
        ctx.save_for_backward(dx_TD, dw_VD, *sources)
        ctx.w_dtype = w_VD.dtype
        return nll / (num_counted if len(x_TD) else 1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        dx_TD, dw_VD, *sources = ctx.saved_tensors
        scale = grad_outputs[0]
        dx_TD = None if dx_TD is None else dx_TD * scale.to(dx_TD.dtype)
        dw_VD = None if dw_VD is None else (dw_VD * scale).to(ctx.w_dtype)
        if torch.is_grad_enabled():  # create_graph=True: somebody means to differentiate them
            dx_TD, dw_VD = (
                None if d is None else refuse_gradient(d, _SECOND, scale, *sources) for d in (dx_TD, dw_VD)
            )
        return dx_TD, dw_VD, None, None, None, None, None


def _softmax_loss(
    logits_MV: torch.Tensor,
    target_M1: torch.Tensor,
    ignored_M1: torch.Tensor,
    count: torch.Tensor,
    back: bool,
) -> torch.Tensor:
    """Return -log softmax of the targets; if `back`, overwrite logits by the derivative of sum / count."""
    # Minus the largest, in place: no exponential overflows, and no second table of logits is needed.
    logits_MV -= logits_MV.amax(1, keepdim=True)
    target_logit_M1 = logits_MV.gather(1, target_M1)
    exp_MV = logits_MV.exp_()
    sum_M1 = exp_MV.sum(1, keepdim=True)
    if back:
        # Derivative of each row: (softmax - 1 at the target) / count; the exponentials are there already.
        # A row that is ignored is multiplied by 0: setting it would be one more pass, the slowest of them.
        factor_M1 = (1 / (sum_M1 * count)).masked_fill_(ignored_M1, 0)
        shift_M1 = (-1 / count).expand_as(sum_M1).masked_fill(ignored_M1, 0)
        exp_MV.mul_(factor_M1).scatter_add_(1, target_M1, shift_M1)
    return (sum_M1.log() - target_logit_M1).masked_fill(ignored_M1, 0)


def cross_entropy(
    x_TD: torch.Tensor, w_VD: torch.Tensor, target_T: torch.Tensor, chunk: int, ignore_index: int = -100
) -> torch.Tensor:
    """Return the mean over tokens of -log softmax(x w^T)[target], in nats; NaN if every token is ignored.

    Args:
        x_TD: outputs of the last norm.
        w_VD: output head.
        target_T: next tokens.
        chunk: tokens whose logits exist at one time.
        ignore_index: a token with this target counts nothing.

    Raises:
        ConfigError: for arguments that do not fit together; on a CPU for a target that is no row of the head,
            too (a GPU would have to be waited for, it ends with a device-side assertion).
    """
    _check_arguments(x_TD, w_VD, target_T, chunk, ignore_index)
    dtype = find_autocast_dtype(x_TD.device)
    # Here and not inside, where autograd would not see the conversion: gradients come
    # back in the weights' own type.
    if dtype is not None:
        x_TD, w_VD = x_TD.to(dtype), w_VD.to(dtype)
    sources = (x_TD[:0].clone(), w_VD[:0].clone())  # ways back to x and w that hold none of their memory
    with disable_autocast(x_TD.device):
        apply: Any = _ChunkedCrossEntropy.apply
        loss: torch.Tensor = apply(x_TD, w_VD, target_T, chunk, ignore_index, *sources)
    return loss


def _check_arguments(
    x_TD: torch.Tensor, w_VD: torch.Tensor, target_T: torch.Tensor, chunk: int, ignore_index: int
) -> None:
    shapes = f"x is {tuple(x_TD.shape)}, w is {tuple(w_VD.shape)}, target is {tuple(target_T.shape)}"
    if (
        x_TD.dim() != 2
        or w_VD.dim() != 2
        or x_TD.shape[1] != w_VD.shape[1]
        or target_T.shape != x_TD.shape[:1]
    ):
        raise ConfigError(f"cross_entropy: {shapes}; must be (tokens, dim), (vocabulary, dim) and (tokens,)")
    if target_T.dtype != torch.int64:
        raise ConfigError(f"cross_entropy: target is {target_T.dtype}, must be torch.int64")
    if chunk < 1:
        raise ConfigError(f"cross_entropy: chunk = {chunk}, must be at least 1")
    if would_wait(target_T):
        return
    wrong_T = ((target_T < 0) | (target_T >= len(w_VD))) & (target_T != ignore_index)
    if wrong_T.any():
        first = int(wrong_T.nonzero()[0])
        raise ConfigError(
            f"cross_entropy: target {int(target_T[first])} of token {first}, must be from 0 to {len(w_VD) - 1}, "
            f"or {ignore_index} to be ignored"
        )
