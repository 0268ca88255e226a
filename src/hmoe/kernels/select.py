"""The router's selection as one operator on GPUs: `hmoe::select_experts`, three launches forward and one backward.

The definition is `hmoe.model.router.route`; this computes the plain routers, top-k and top-p.
"""

from typing import Any, NamedTuple

import torch

from hmoe.kernels.device import runs_triton

MOST_EXPERTS = 1024  # one program holds a vector over experts


class Rule(NamedTuple):
    """How a plain router chooses and weighs.

    Attributes:
        k: experts per token; 0: the largest until their probabilities reach p.
        p: see there.
        sigmoid: scores are sigmoids of the logits, else their softmax.
        renormalize: gates are divided by their sum.
        scale: multiplies gates.
    """

    k: int
    p: float
    sigmoid: bool
    renormalize: bool
    scale: float


class Selection(NamedTuple):
    """What a router gives; see `hmoe.model.routing.Routing`. Pairs beyond the counts have token 0 and gate 0.

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
    """Whether the kernels compute this router: on a GPU, eagerly; a compiler fuses the definition itself."""
    plain = logits_TE.dtype == torch.float32 and 0 < logits_TE.shape[1] <= MOST_EXPERTS
    return plain and not torch.compiler.is_compiling() and runs_triton(logits_TE.device)


def select_experts(
    logits_TE: torch.Tensor, bias_E: torch.Tensor | None, rule: Rule, chosen_TE: torch.Tensor | None
) -> Selection:
    """Choose experts, weigh them and list the pairs, by the kernels.

    Args:
        logits_TE: of the router.
        bias_E: added to the scores for choosing; None: logits are compared.
        rule: how.
        chosen_TE: a choice that is made already.
    """
    outputs = select_op(logits_TE.contiguous(), bias_E, chosen_TE, *rule)
    return Selection(*outputs[:6])


Outputs = tuple[
    torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor
]  # of Selection, then where the blocks of tokens begin within an expert


def block_size(num_experts: int) -> int:
    """Tokens that a program holds: with all experts of each, what fits into registers."""
    padded = max(2, 1 << (num_experts - 1).bit_length())
    return max(1, min(64, 512 // padded))


@torch.library.custom_op("hmoe::select_experts", mutates_args=())
def select_op(
    logits_TE: torch.Tensor,
    bias_E: torch.Tensor | None,
    given_TE: torch.Tensor | None,
    k: int,
    p: float,
    sigmoid: bool,
    renormalize: bool,
    scale: float,
) -> Outputs:
    """See `select_experts`."""
    from hmoe.kernels.ragged import router  # noqa: PLC0415 - needs Triton

    return router.select(logits_TE, bias_E, given_TE, Rule(k, p, sigmoid, renormalize, scale))


@select_op.register_fake
def _(logits_TE: torch.Tensor, bias_E: Any, given_TE: Any, k: int, *rule: Any) -> Outputs:
    num_tokens, num_experts = logits_TE.shape
    room, blocks = num_tokens * (k or num_experts), -(-num_tokens // block_size(num_experts))
    token_N, expert_N, num_tokens_E = (logits_TE.new_empty(n, dtype=torch.int64) for n in (room, room, num_experts))
    chosen_TE = logits_TE.new_empty(logits_TE.shape, dtype=torch.int8)
    begin_EB = logits_TE.new_empty(num_experts, blocks, dtype=torch.int32)
    return torch.empty_like(logits_TE), logits_TE.new_empty(room), token_N, expert_N, num_tokens_E, chosen_TE, begin_EB


@torch.library.custom_op("hmoe::select_experts_backward", mutates_args=())
def select_backward_op(
    dprobs_TE: torch.Tensor | None,
    dgate_N: torch.Tensor | None,
    logits_TE: torch.Tensor,
    chosen_TE: torch.Tensor,
    num_tokens_E: torch.Tensor,
    begin_EB: torch.Tensor,
    sigmoid: bool,
    renormalize: bool,
    scale: float,
) -> torch.Tensor:
    """d logits; the choice is a constant."""
    from hmoe.kernels.ragged import router  # noqa: PLC0415 - needs Triton

    rule = Rule(0, 0.0, sigmoid, renormalize, scale)
    return router.select_backward(dprobs_TE, dgate_N, (logits_TE, chosen_TE, num_tokens_E, begin_EB), rule)


@select_backward_op.register_fake
def _(dprobs_TE: Any, dgate_N: Any, logits_TE: torch.Tensor, *rest: Any) -> torch.Tensor:
    return torch.empty_like(logits_TE)


def _refuse_second(ctx: Any, *_: Any) -> None:
    raise RuntimeError(
        "second derivatives of a router on a GPU: not computed; use float64, which is computed by the definition"
    )


select_backward_op.register_autograd(_refuse_second)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    ctx.save_for_backward(inputs[0], output[5], output[4], output[6])
    ctx.rule = inputs[5:]
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dprobs_TE: torch.Tensor | None, dgate_N: torch.Tensor | None, *_: Any) -> tuple[Any, ...]:
    dlogits_TE = None
    if dprobs_TE is not None or dgate_N is not None:
        dlogits_TE = select_backward_op(dprobs_TE, dgate_N, *ctx.saved_tensors, *ctx.rule)
    return dlogits_TE, *(None,) * 7


select_op.register_autograd(_backward, setup_context=_save)
