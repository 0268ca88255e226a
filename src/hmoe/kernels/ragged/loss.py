"""Triton kernel of the language-model loss: logits read twice, their derivative written where they were."""

import torch
import triton
import triton.language as tl

from hmoe.kernels.capture import check_first_call
from hmoe.kernels.device import on_device_of

BLOCK = 4096  # logits that a program holds


@triton.jit(do_not_specialize=["ignore_index"])
def loss_kernel(
    logits_MV, target_M, count, nll_M, ignore_index, V: tl.constexpr, BLOCK: tl.constexpr, BACK: tl.constexpr
):
    """-log softmax(logits)[target] of a row, 0 where the target is ignored; if BACK its derivative / count, in the logits' place."""
    row = logits_MV + tl.program_id(0).to(tl.int64) * V
    target = tl.load(target_M + tl.program_id(0))
    counted = target != ignore_index
    # Before the barriers of the sums: after them another warp may already have written the derivative there.
    at_target = tl.load(row + tl.where(counted, target, 0)).to(tl.float32)
    largest, total = tl.full((), -float("inf"), tl.float32), tl.zeros((), tl.float32)
    for first in range(0, V, BLOCK):
        column = first + tl.arange(0, BLOCK)
        z = tl.load(row + column, mask=column < V, other=-float("inf")).to(tl.float32)
        here = tl.maximum(largest, tl.max(z, 0))
        base = tl.where(here == -float("inf"), 0.0, here)  # nothing but -inf so far
        total = total * tl.exp(largest - base) + tl.sum(tl.exp(z - base), 0)
        largest = here
    base = tl.where(largest == -float("inf"), 0.0, largest)
    tl.store(nll_M + tl.program_id(0), tl.where(counted, tl.log(total) + base - at_target, 0.0))
    if BACK:
        scale = tl.where(counted, 1 / tl.load(count), 0.0)
        for first in range(0, V, BLOCK):
            column = first + tl.arange(0, BLOCK)
            z = tl.load(row + column, mask=column < V, other=0.0).to(tl.float32)
            d = tl.where(counted, tl.exp(z - base) / total - (column == target).to(tl.float32), 0.0) * scale
            tl.store(row + column, d, mask=column < V)


def launch(
    logits_MV: torch.Tensor, target_M: torch.Tensor, count: torch.Tensor, ignore_index: int, back: bool
) -> torch.Tensor:
    """See `hmoe.kernels.loss.softmax_loss`."""
    num_tokens, vocab = logits_MV.shape
    nll_M = torch.empty(num_tokens, dtype=torch.float32, device=logits_MV.device)
    check_first_call("cross_entropy", (vocab, logits_MV.dtype, back), logits_MV.device)
    if num_tokens:
        known_M = (target_M >= 0) & (target_M < vocab) | (target_M == ignore_index)
        torch._assert_async(
            known_M.all(), "cross_entropy: a target is no row of the head"
        )  # on the device, nobody waits
        with on_device_of(logits_MV):
            block = min(BLOCK, triton.next_power_of_2(vocab))
            loss_kernel[(num_tokens,)](logits_MV, target_M, count, nll_M, ignore_index, vocab, block, back)
    return nll_M
