"""Launches the router's kernels; see `hmoe.kernels.select`."""

import torch
import triton

from hmoe.kernels.capture import check_first_call
from hmoe.kernels.device import use_device_of
from hmoe.kernels.ragged.select import begin_kernel, choose_kernel, pairs_kernel, select_backward_kernel
from hmoe.kernels.router_rule import Rule, SelectionOutputs, choose_block_size

_CHUNK = 1024  # blocks of tokens that are added up at a time


def launch_selection(
    logits_TE: torch.Tensor, bias_E: torch.Tensor | None, chosen_before_TE: torch.Tensor | None, rule: Rule
) -> SelectionOutputs:
    """Select experts in three launches: choose, count, list; arguments as in `hmoe.kernels.select`."""
    num_tokens, num_experts = logits_TE.shape
    variant = (num_experts, rule, bias_E is None, chosen_before_TE is None)
    check_first_call("router", ("forward", *variant), logits_TE.device)
    # A program holds a block of tokens with all their experts, padded to a power of two.
    block = choose_block_size(num_experts)
    blocks, padded = triton.cdiv(num_tokens, block), max(2, triton.next_power_of_2(num_experts))
    probs_TE, room = torch.empty_like(logits_TE), num_tokens * (rule.k or num_experts)
    chosen_TE = (
        logits_TE.new_empty(logits_TE.shape, dtype=torch.int8)
        if chosen_before_TE is None
        else chosen_before_TE.clone()
    )
    block_begin = logits_TE.new_empty(num_experts, blocks, dtype=torch.int32)
    # Top-k fills its pairs; of top-p's room what lies beyond the counts must be a token and a gate of 0.
    new = logits_TE.new_empty if rule.k else logits_TE.new_zeros
    token_N, expert_N = (new(room, dtype=torch.int64) for _ in range(2))
    gate_N, num_tokens_E = new(room), logits_TE.new_empty(num_experts, dtype=torch.int64)
    sizes = (num_experts, padded, block)
    with use_device_of(logits_TE):
        if blocks:
            bias = logits_TE if bias_E is None else bias_E  # a pointer must be given, also if it is not read
            flags = {
                "SIGMOID": rule.sigmoid,
                "BIASED": bias_E is not None,
                "GIVEN": chosen_before_TE is not None,
            }
            tensors = (logits_TE, bias, probs_TE, chosen_TE, block_begin)
            choose_kernel[(blocks,)](*tensors, num_tokens, blocks, rule.p, *sizes, rule.k, **flags)
        begin_kernel[(num_experts,)](block_begin, num_tokens_E, blocks, _CHUNK)
        if blocks:
            into = (token_N, expert_N, gate_N, num_tokens, blocks, rule.scale)
            flags = {"SIGMOID": rule.sigmoid, "RENORMALIZE": rule.renormalize}
            pairs_kernel[(blocks,)](logits_TE, chosen_TE, num_tokens_E, block_begin, *into, *sizes, **flags)
    return probs_TE, gate_N, token_N, expert_N, num_tokens_E, chosen_TE, block_begin


def launch_selection_backward(
    dprobs_TE: torch.Tensor | None,
    dgate_N: torch.Tensor | None,
    saved: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    rule: Rule,
) -> torch.Tensor:
    """Compute the derivative of the logits (T, E) in one launch.

    Args:
        dprobs_TE, dgate_N: derivatives of the outputs; None where there is none.
        saved: logits_TE, chosen_TE, num_tokens_E and block_begin.
        rule: how gates were weighed; its k and p are not used.
    """
    logits_TE, block_begin = saved[0], saved[3]
    dlogits_TE = torch.empty_like(logits_TE)
    num_tokens, num_experts = logits_TE.shape
    blocks, block = block_begin.shape[1], choose_block_size(num_experts)
    dprobs = logits_TE if dprobs_TE is None else dprobs_TE.contiguous()
    dgate = logits_TE if dgate_N is None else dgate_N.contiguous()
    sizes = (num_experts, max(2, triton.next_power_of_2(num_experts)), block)
    flags = {"PROBS": dprobs_TE is not None, "GATES": dgate_N is not None}
    check_first_call("router", ("backward", num_experts, rule, *flags.values()), logits_TE.device)
    if blocks:
        with use_device_of(logits_TE):
            select_backward_kernel[(blocks,)](
                dprobs, dgate, *saved, dlogits_TE, num_tokens, blocks, rule.scale, *sizes,
                rule.sigmoid, rule.renormalize, **flags,
            )  # fmt: skip
    return dlogits_TE
