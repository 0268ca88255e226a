"""Language-model loss without ever holding the logits of all tokens."""

from typing import Any

import torch


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Gradients are made in the forward pass, chunk by chunk, while the chunk's logits exist."""

    @staticmethod
    def forward(ctx: Any, x_TD: torch.Tensor, w_VD: torch.Tensor, target_T: torch.Tensor, chunk: int) -> torch.Tensor:
        dtype = torch.float64 if x_TD.dtype == torch.float64 else torch.float32
        need_x, need_w = ctx.needs_input_grad[:2]
        dx_TD = torch.empty_like(x_TD) if need_x else None
        dw_VD = torch.zeros(w_VD.shape, dtype=dtype, device=w_VD.device) if need_w else None
        nll = torch.zeros((), dtype=dtype, device=x_TD.device)
        for start in range(0, len(x_TD), chunk):
            x_MD, target_M1 = x_TD[start : start + chunk], target_T[start : start + chunk, None]
            logits_MV = (x_MD @ w_VD.T).to(dtype)
            logits_MV -= logits_MV.amax(1, keepdim=True)
            target_logit_M1 = logits_MV.gather(1, target_M1)
            exp_MV = logits_MV.exp_()  # from here on in the logits' own memory
            sum_M1 = exp_MV.sum(1, keepdim=True)
            nll += (sum_M1.log() - target_logit_M1).sum()
            if not (need_x or need_w):
                continue
            d_MV = exp_MV.mul_(1 / (sum_M1 * len(x_TD)))
            d_MV.scatter_add_(1, target_M1, torch.full_like(sum_M1, -1 / len(x_TD)))
            d_MV = d_MV.to(x_TD.dtype)
            if dx_TD is not None:
                torch.mm(d_MV, w_VD, out=dx_TD[start : start + chunk])
            if dw_VD is not None:
                dw_VD += d_MV.T @ x_MD
        ctx.save_for_backward(dx_TD, dw_VD)
        ctx.w_dtype = w_VD.dtype
        return nll / max(len(x_TD), 1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        dx_TD, dw_VD = ctx.saved_tensors
        scale = grad_outputs[0]
        dx_TD = None if dx_TD is None else dx_TD * scale.to(dx_TD.dtype)
        dw_VD = None if dw_VD is None else (dw_VD * scale).to(ctx.w_dtype)
        return dx_TD, dw_VD, None, None


def cross_entropy(x_TD: torch.Tensor, w_VD: torch.Tensor, target_T: torch.Tensor, chunk: int) -> torch.Tensor:
    """Mean over tokens of -log softmax(x w^T)[target], in nats.

    Args:
        x_TD: outputs of the last norm.
        w_VD: output head.
        target_T: next tokens.
        chunk: tokens whose logits exist at one time.
    """
    device = x_TD.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x_TD, w_VD = x_TD.to(dtype), w_VD.to(dtype)
    with torch.autocast(device, enabled=False):
        loss: torch.Tensor = _ChunkedCrossEntropy.apply(x_TD, w_VD, target_T, chunk)  # type: ignore[no-untyped-call]
    return loss
