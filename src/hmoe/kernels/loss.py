"""The language-model loss of a chunk of logits on GPUs; the definition is in `hmoe.model.cross_entropy`."""

import torch


def softmax_loss(
    logits_MV: torch.Tensor, target_M: torch.Tensor, count: torch.Tensor, ignore_index: int, back: bool
) -> torch.Tensor:
    """-log softmax(logits)[target] of each row, float32; 0 where the target is `ignore_index`.

    If `back`, the logits are overwritten by the derivative of the rows' sum divided by `count`, a tensor with one number.
    """
    from hmoe.kernels.ragged.loss import launch  # noqa: PLC0415 - needs Triton

    return launch(logits_MV, target_M.contiguous(), count, ignore_index, back)
