"""The one door to the expert computation; which backend runs is chosen in `choice.py` and nowhere else.

For GPUs there are also `select_experts`, the routers that Triton computes; `rotate_pairs`, rotary positions;
and `softmax_loss`, the language-model loss.

| backend | what it is | for |
|---|---|---|
| `reference` | the definition, plain autograd | any device and dtype; float64 |
| `loop` | library GEMMs, one expert after another, hand-written backward | any device and dtype |
| `exact` | the loop, each expert alone at aligned addresses: the same bits whoever computes an expert | exact mode |
| `cpu` | in bfloat16 the optional C++ library where it was built, else the loop | CPU |
| `triton` | ragged kernels over all experts at once, no host synchronisation | NVIDIA GPUs from Ampere on |
"""

from collections.abc import Sequence

import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

from hmoe.errors import ConfigError
from hmoe.kernels import choice
from hmoe.kernels.choice import NAMES, check_counts, check_layer_tensors, resolve_backend
from hmoe.kernels.device import can_fuse
from hmoe.kernels.layer import Layer, bound_room, count_room, make_contiguous
from hmoe.kernels.loss import softmax_loss
from hmoe.kernels.op import forward_op
from hmoe.kernels.reference import expert_ffn_reference
from hmoe.kernels.rotation import rotate_pairs
from hmoe.kernels.router_rule import Rule
from hmoe.kernels.select import ExpertSelection, fuses_router, select_experts

__all__ = [
    "NAMES",
    "ExpertSelection",
    "Rule",
    "can_fuse",
    "expert_ffn",
    "fuses_router",
    "rotate_pairs",
    "select_experts",
    "softmax_loss",
]


def expert_ffn(
    x_TD: torch.Tensor,
    token_N: torch.Tensor,
    gate_N: torch.Tensor,
    num_tokens_E: torch.Tensor,
    w_gate_FD: torch.Tensor,
    w_up_FD: torch.Tensor,
    w_down_FD: torch.Tensor,
    widths: Sequence[int],
    backend: str | None = None,
) -> torch.Tensor:
    """Sum over a token's experts of gate x SwiGLU expert, experts of any width (HMoE eq 1, 2 and 6).

    Args:
        x_TD: tokens.
        token_N: token of each token-expert pair, pairs sorted by expert, at most one pair of a token and an
            expert. Pairs beyond the counts are ignored, so that a shape can stay the same when the counts
            change.
        gate_N: gate of each pair.
        num_tokens_E: pairs of each expert.
        w_gate_FD, w_up_FD, w_down_FD: rows of hidden units, expert after expert; the down projection is
            transposed.
        widths: hidden units of each expert; sums to F.
        backend: one of NAMES, or None for the fastest that is exact enough for the dtype.

    Returns:
        y_TD, in the dtype of x.

    Raises:
        ConfigError: for an unknown backend or one that cannot compute these tensors, and for tensors or
            counts that do not fit together.
    """
    layer = Layer(x_TD, token_N, gate_N, num_tokens_E, w_gate_FD, w_up_FD, w_down_FD, tuple(widths))
    check_layer_tensors(layer)
    differentiable = (x_TD, gate_N, w_gate_FD, w_up_FD, w_down_FD)
    needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in differentiable)
    if torch.compiler.is_compiling():
        if backend == "reference":
            raise ConfigError(
                "backend = 'reference' is plain Python and cannot be compiled; nearest choice: loop"
            )
        # The counts are symbols here, so the room is a bound, and the backend is chosen when the graph runs.
        y_TD: torch.Tensor = forward_op(*layer, bound_room(layer) if needs_grad else 0, backend or "")[0]
        return y_TD
    name = resolve_backend(backend, layer)
    if _get_current_dispatch_mode() is None:  # under a mode, tensors may be fake: their counts have no values
        check_counts(layer, name)
    if name == "reference":
        return expert_ffn_reference(*layer)
    # An operator would drop a tangent without a word, and the derivative would silently be zero.
    if forward_ad._current_level >= 0 and any(_has_tangent(tensor) for tensor in layer[:7]):
        raise ConfigError(
            f"forward-mode derivatives: computed by backend = 'reference' only, this is {name!r}"
        )
    if not needs_grad and _can_skip_operator(layer):
        return choice.get_backend(name).forward(make_contiguous(layer[:7], layer.widths), 0)[0]
    y_TD = forward_op(*layer, _choose_room(layer, name) if needs_grad else 0, name)[0]
    return y_TD


def _choose_room(layer: Layer, name: str) -> int:
    """Return the elements of one pre-activation that the forward pass gets memory for."""
    # Counts on a GPU are not asked for: the host would wait for the device, and a bound costs memory only.
    on_cpu = layer.num_tokens_E.device.type == "cpu"
    return count_room(choice.get_backend(name), layer) if on_cpu else bound_room(layer)


def _can_skip_operator(layer: Layer) -> bool:
    """Return whether nothing looks at the operator: it costs 50 us, a tenth of a layer serving a token."""
    plain = all(type(tensor) in (torch.Tensor, torch.nn.Parameter) for tensor in layer[:7])
    return plain and _get_current_dispatch_mode() is None


def _has_tangent(tensor: torch.Tensor) -> bool:
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]
