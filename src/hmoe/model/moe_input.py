"""What a MoE layer is called with, checked before anything is computed: one line says what does not fit."""

from typing import Any

import torch

from hmoe.errors import ConfigError, NonFiniteError


def check_moe_input(x: Any, dim: int, weight: torch.Tensor) -> None:
    """Raise ConfigError unless x is a tensor of numbers with a fraction, on the weights' device, with `dim` last.

    Args:
        x: what the layer was called with.
        dim: width of the model.
        weight: a weight of the layer.
    """
    if not isinstance(x, torch.Tensor):
        raise ConfigError(f"MoE: the input is of type {type(x).__name__}, must be a tensor (..., {dim})")
    if x.dim() == 0 or x.shape[-1] != dim:
        raise ConfigError(f"MoE: the input's shape is {tuple(x.shape)}, its last axis must be dim = {dim}")
    if not x.is_floating_point():
        raise ConfigError(
            f"MoE: the input is {x.dtype}, must be floating point, such as the weights' {weight.dtype}; "
            "token ids go through an embedding first"
        )
    # Weights on meta are somewhere else: accelerate's hooks bring them when the parts of the layer are called.
    if x.device != weight.device and not weight.is_meta:
        raise ConfigError(
            f"MoE: the input is on {x.device}, the weights on {weight.device}; move one, "
            f"such as moe.to({str(x.device)!r})"
        )


def check_same_dtype(x: torch.Tensor, weight: torch.Tensor) -> None:
    """Raise ConfigError if experts would have to multiply two types, which outside autocast nobody converts."""
    if x.dtype != weight.dtype:
        raise ConfigError(
            f"MoE: the input is {x.dtype}, the experts' weights are {weight.dtype}; convert the input "
            f"(x.to({weight.dtype})) or the layer (moe.to({x.dtype})), or compute under torch.autocast"
        )


def raise_if_not_finite(logits_TE: torch.Tensor) -> None:
    """Raise NonFiniteError for router logits that are NaN or infinite; waits for the device."""
    bad_T = ~torch.isfinite(logits_TE).all(1)
    if bad_T.any():
        first = int(bad_T.nonzero()[0])
        raise NonFiniteError(
            f"router logits of {int(bad_T.sum())} of {len(bad_T)} tokens are NaN or infinite "
            f"(first: token {first}); "
            "check the layer's input, or set check_finite=False to get NaN outputs instead"
        )
