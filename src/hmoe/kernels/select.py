"""The router's selection as one operator on GPUs, `hmoe::select_experts`: three launches, and one backward.

The definition is `hmoe.model.router.route_tokens`; this computes the plain routers, top-k and top-p.
"""

from typing import Any, NamedTuple

import torch

from hmoe.kernels.device import runs_triton
from hmoe.kernels.router_rule import Rule, SelectionOutputs, choose_block_size

MOST_EXPERTS = 1024  # one program holds a vector over experts


class ExpertSelection(NamedTuple):
    """What a router gives; the fields are those of `hmoe.model.routing.Routing`.

    Pairs are sorted by expert, then by token; those beyond the counts have token 0 and gate 0.

    Attributes:
        chosen_TE: 1 where an expert was chosen, int8: for a recomputation, which must choose the same.
    """

    probs_TE: torch.Tensor
    gate_N: torch.Tensor
    token_N: torch.Tensor
    expert_N: torch.Tensor
    num_tokens_E: torch.Tensor
    chosen_TE: torch.Tensor


def fuses_router(logits_TE: torch.Tensor) -> bool:
    """Return whether the kernels compute this router: on a GPU, eagerly; a compiler fuses the definition."""
    plain = logits_TE.dtype == torch.float32 and 0 < logits_TE.shape[1] <= MOST_EXPERTS
    return plain and not torch.compiler.is_compiling() and runs_triton(logits_TE.device)


def select_experts(
    logits_TE: torch.Tensor, bias_E: torch.Tensor | None, rule: Rule, chosen_TE: torch.Tensor | None
) -> ExpertSelection:
    """Choose experts, weigh them and list the pairs, by the kernels.

    Args:
        logits_TE: the router's logits, float32.
        bias_E: added to the scores for choosing, not to the gates; None: logits are compared.
        rule: how experts are chosen and weighed.
        chosen_TE: a choice made before (int8), which is kept; None: choose.
    """
    outputs = select_op(logits_TE.contiguous(), bias_E, chosen_TE, *rule)
    return ExpertSelection(*outputs[:6])


@torch.library.custom_op("hmoe::select_experts", mutates_args=())
def select_op(
    logits_TE: torch.Tensor,
    bias_E: torch.Tensor | None,
    chosen_before_TE: torch.Tensor | None,
    k: int,
    p: float,
    sigmoid: bool,
    renormalize: bool,
    scale: float,
) -> SelectionOutputs:
    """Compute the selection; arguments as in `select_experts`, with the fields of its rule one by one."""
    from hmoe.kernels.ragged import router  # noqa: PLC0415 - needs Triton

    return router.launch_selection(
        logits_TE, bias_E, chosen_before_TE, Rule(k, p, sigmoid, renormalize, scale)
    )


@select_op.register_fake
def _(logits_TE: torch.Tensor, bias_E: Any, chosen_before_TE: Any, k: int, *rule: Any) -> SelectionOutputs:
    num_tokens, num_experts = logits_TE.shape
    # Top-p may choose all experts: how many it does choose is known on the device only.
    room, blocks = num_tokens * (k or num_experts), -(-num_tokens // choose_block_size(num_experts))
    token_N, expert_N, num_tokens_E = (
        logits_TE.new_empty(n, dtype=torch.int64) for n in (room, room, num_experts)
    )
    chosen_TE = logits_TE.new_empty(logits_TE.shape, dtype=torch.int8)
    block_begin = logits_TE.new_empty(num_experts, blocks, dtype=torch.int32)
    return (
        torch.empty_like(logits_TE),
        logits_TE.new_empty(room),
        token_N,
        expert_N,
        num_tokens_E,
        chosen_TE,
        block_begin,
    )


@torch.library.custom_op("hmoe::select_experts_backward", mutates_args=())
def select_backward_op(
    dprobs_TE: torch.Tensor | None,
    dgate_N: torch.Tensor | None,
    logits_TE: torch.Tensor,
    chosen_TE: torch.Tensor,
    num_tokens_E: torch.Tensor,
    block_begin: torch.Tensor,
    sigmoid: bool,
    renormalize: bool,
    scale: float,
) -> torch.Tensor:
    """Compute the derivative of the logits (T, E) from those of the outputs; the choice is a constant."""
    from hmoe.kernels.ragged import router  # noqa: PLC0415 - needs Triton

    rule = Rule(0, 0.0, sigmoid, renormalize, scale)
    return router.launch_selection_backward(
        dprobs_TE, dgate_N, (logits_TE, chosen_TE, num_tokens_E, block_begin), rule
    )


@select_backward_op.register_fake
def _(dprobs_TE: Any, dgate_N: Any, logits_TE: torch.Tensor, *rest: Any) -> torch.Tensor:
    return torch.empty_like(logits_TE)


def _refuse_second(ctx: Any, *_: Any) -> None:
    raise RuntimeError(
        "second derivatives of a router on a GPU: not computed; use float64, which is computed by the definition"
    )


select_backward_op.register_autograd(_refuse_second)


def _save(ctx: Any, inputs: tuple[Any, ...], output: SelectionOutputs) -> None:
    logits_TE, num_tokens_E, chosen_TE, block_begin = inputs[0], *output[4:]
    ctx.save_for_backward(logits_TE, chosen_TE, num_tokens_E, block_begin)
    ctx.rule = inputs[5:]  # without k and p: the choice is saved
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, dprobs_TE: torch.Tensor | None, dgate_N: torch.Tensor | None, *_: Any
) -> tuple[Any, ...]:
    dlogits_TE = None
    if dprobs_TE is not None or dgate_N is not None:
        dlogits_TE = select_backward_op(dprobs_TE, dgate_N, *ctx.saved_tensors, *ctx.rule)
    return dlogits_TE, *(None,) * 7


select_op.register_autograd(_backward, setup_context=_save)
