"""The one door to the expert computation; which backend runs is chosen here and nowhere else.

Backends: `reference` (the definition) and `loop` (one library GEMM group per expert, hand-written backward).
"""

from collections.abc import Callable, Sequence

import torch

from hmoe.errors import ConfigError
from hmoe.kernels.loop import expert_ffn_loop
from hmoe.kernels.reference import expert_ffn_reference

Backend = Callable[..., torch.Tensor]
BACKENDS: dict[str, Backend] = {"reference": expert_ffn_reference, "loop": expert_ffn_loop}


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
        token_N: token of each token-expert pair, pairs sorted by expert.
        gate_N: gate of each pair.
        num_tokens_E: pairs of each expert; sums to N.
        w_gate_FD, w_up_FD, w_down_FD: rows of hidden units, expert after expert; the down projection is transposed.
        widths: hidden units of each expert; sums to F.
        backend: a name in BACKENDS, or None for the fastest that is exact enough for the dtype.

    Returns:
        y_TD, in the dtype of x.

    Raises:
        ConfigError: for an unknown backend.
    """
    if backend is None:
        backend = "reference" if x_TD.dtype == torch.float64 else "loop"
    if backend not in BACKENDS:
        raise ConfigError(f"backend = {backend!r}, must be one of {', '.join(BACKENDS)}")
    run = BACKENDS[backend]
    return run(x_TD, token_N, gate_N, num_tokens_E, w_gate_FD, w_up_FD, w_down_FD, widths)
