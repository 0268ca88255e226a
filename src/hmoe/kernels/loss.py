"""The language-model loss of a chunk of logits on GPUs; the definition is in `hmoe.model.cross_entropy`."""

import importlib.util

import torch


def fuses_loss(logits_MV: torch.Tensor) -> bool:
    """Whether the kernel computes this loss: on a GPU, in a type that it computes."""
    return (
        logits_MV.is_cuda
        and logits_MV.dtype in (torch.bfloat16, torch.float16, torch.float32)
        and importlib.util.find_spec("triton") is not None
        and torch.cuda.get_device_capability(logits_MV.device) >= (8, 0)
    )


def softmax_loss(
    logits_MV: torch.Tensor, target_M: torch.Tensor, count: torch.Tensor, ignore_index: int, back: bool
) -> torch.Tensor:
    """-log softmax(logits)[target] of each row, float32; 0 where the target is `ignore_index`.

    If `back`, the logits are overwritten by the derivative of the rows' sum divided by `count`, a tensor with one number.
    """
    from hmoe.kernels.ragged.loss import launch  # noqa: PLC0415 - needs Triton

    return launch(logits_MV, target_M.contiguous(), count, ignore_index, back)
