"""Triton kernel of the language-model loss: logits read twice, their derivative written where they were."""

import torch
import triton
import triton.language as tl

from hmoe.kernels.capture import check_first_call
from hmoe.kernels.device import use_device_of

BLOCK = 4096  # logits that a program holds


@triton.jit(do_not_specialize=["ignore_index"])
def loss_kernel(
    logits_TV, target_T, count, nll_T, ignore_index, V: tl.constexpr, BLOCK: tl.constexpr, BACK: tl.constexpr
):
    """Compute -log softmax(logits)[target] of a token, 0 where the target is ignored; one program per token.

    If BACK, the logits are overwritten by its derivative / count.
    """
    row = logits_TV + tl.program_id(0).to(tl.int64) * V
    target = tl.load(target_T + tl.program_id(0))
    counted = target != ignore_index
    # Before the barriers of the sums: after them another warp may already have written the derivative there.
    at_target = tl.load(row + tl.where(counted, target, 0)).to(tl.float32)
    # The largest and the sum in one pass: when a larger one comes, the sum so far is scaled to it.
    largest, total = tl.full((), -float("inf"), tl.float32), tl.zeros((), tl.float32)
    for first in range(0, V, BLOCK):
        column = first + tl.arange(0, BLOCK)
        z = tl.load(row + column, mask=column < V, other=-float("inf")).to(tl.float32)
        here = tl.maximum(largest, tl.max(z, 0))
        base = tl.where(here == -float("inf"), 0.0, here)  # nothing but -inf so far
        total = total * tl.exp(largest - base) + tl.sum(tl.exp(z - base), 0)
        largest = here
    base = tl.where(largest == -float("inf"), 0.0, largest)
    tl.store(nll_T + tl.program_id(0), tl.where(counted, tl.log(total) + base - at_target, 0.0))
    if BACK:
        scale = tl.where(counted, 1 / tl.load(count), 0.0)
        for first in range(0, V, BLOCK):
            column = first + tl.arange(0, BLOCK)
            z = tl.load(row + column, mask=column < V, other=0.0).to(tl.float32)
            d = tl.where(counted, tl.exp(z - base) / total - (column == target).to(tl.float32), 0.0) * scale
            tl.store(row + column, d, mask=column < V)


def launch_softmax_loss(
    logits_TV: torch.Tensor, target_T: torch.Tensor, count: torch.Tensor, ignore_index: int, back: bool
) -> torch.Tensor:
    """Launch the kernel of the loss on the logits' device; arguments as in `hmoe.kernels.softmax_loss`."""
    num_tokens, vocab = logits_TV.shape
    nll_T = torch.empty(num_tokens, dtype=torch.float32, device=logits_TV.device)
    check_first_call("cross_entropy", (vocab, logits_TV.dtype, back), logits_TV.device)
    if num_tokens:
        known_T = (target_T >= 0) & (target_T < vocab) | (target_T == ignore_index)
        # On the device, where nobody waits: the kernel would read outside of the logits.
        torch._assert_async(known_T.all(), "cross_entropy: a target is no row of the head")
        with use_device_of(logits_TV):
            block = min(BLOCK, triton.next_power_of_2(vocab))
            loss_kernel[(num_tokens,)](logits_TV, target_T, count, nll_T, ignore_index, vocab, block, back)
    return nll_T
