"""The language-model loss of a chunk of logits on GPUs; the definition is in `hmoe.model.cross_entropy`."""

import torch


def softmax_loss(
    logits_TV: torch.Tensor, target_T: torch.Tensor, count: torch.Tensor, ignore_index: int, back: bool
) -> torch.Tensor:
    """Return -log softmax(logits)[target] of each token (T,), float32; 0 where the target is `ignore_index`.

    Args:
        logits_TV: of a chunk of tokens. If `back`, they are overwritten by the derivative of the tokens' sum
            divided by `count`.
        target_T: the right row of the vocabulary for each token.
        count: a tensor with one number, which is not read on the host.
        ignore_index: target of the tokens that count nothing.
        back: whether the derivative is wanted.
    """
    from hmoe.kernels.ragged.loss import launch_softmax_loss  # noqa: PLC0415 - needs Triton

    return launch_softmax_loss(logits_TV, target_T.contiguous(), count, ignore_index, back)
