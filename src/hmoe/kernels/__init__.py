"""The one door to the expert computation; which backend runs is chosen here and nowhere else.

| backend | what it is | for |
|---|---|---|
| `reference` | the definition, plain autograd | any device and dtype; float64 |
| `loop` | library GEMMs, one expert after another, hand-written backward | any device and dtype; few large experts on a GPU |
| `cpu` | whole experts on single threads; in bfloat16 the optional C++ library | CPU |
| `triton` | ragged kernels over all experts at once, no host synchronisation | NVIDIA GPUs from Ampere on |
"""

from collections.abc import Sequence

import torch

from hmoe.errors import ConfigError
from hmoe.kernels import cpu, loop, op
from hmoe.kernels.layer import Layer, exact_room, room_bound
from hmoe.kernels.reference import expert_ffn_reference

op.BACKENDS |= {"loop": loop.BACKEND, "cpu": cpu.BACKEND}
NAMES = ("reference", *op.BACKENDS)


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
        token_N: token of each token-expert pair, pairs sorted by expert, at most one pair of a token and an expert. Pairs
            beyond the counts are ignored, so that a shape can stay the same when the counts change.
        gate_N: gate of each pair.
        num_tokens_E: pairs of each expert.
        w_gate_FD, w_up_FD, w_down_FD: rows of hidden units, expert after expert; the down projection is transposed.
        widths: hidden units of each expert; sums to F.
        backend: a name in NAMES, or None for the fastest that is exact enough for the dtype.

    Returns:
        y_TD, in the dtype of x.

    Raises:
        ConfigError: for an unknown backend, or one that cannot compute these tensors.
    """
    layer = Layer(x_TD, token_N, gate_N, num_tokens_E, w_gate_FD, w_up_FD, w_down_FD, tuple(widths))
    name = backend or choose(layer)
    if name not in NAMES:
        raise ConfigError(f"backend = {name!r}, must be one of {', '.join(NAMES)}")
    if name == "reference":
        return expert_ffn_reference(*layer)
    reason = op.BACKENDS[name].refusal(layer)
    if reason:
        raise ConfigError(f"backend = {name!r} cannot compute this layer: {reason}; nearest choice: loop")
    y_TD: torch.Tensor = op.forward_op(*layer, _room(name, layer), name)[0]
    return y_TD


def choose(layer: Layer) -> str:
    """The backend for these tensors."""
    if layer.x_TD.dtype == torch.float64:
        return "loop" if torch.compiler.is_compiling() else "reference"
    return "cpu" if layer.x_TD.device.type == "cpu" else "loop"


def _room(name: str, layer: Layer) -> int:
    """Elements of each pre-activation to keep: none without a backward pass, exact where the counts are at hand."""
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in layer[:-1])):  # type: ignore[union-attr]
        return 0
    if torch.compiler.is_compiling() or layer.x_TD.device.type != "cpu":
        return room_bound(layer)
    return exact_room(op.BACKENDS[name], layer)
