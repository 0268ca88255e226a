"""What can be offloaded, and by what updated: one line says what cannot."""

from collections.abc import Sequence

import torch

from hmoe.errors import ConfigError
from hmoe.parallel.offloaded_layer import ExpertHome
from hmoe.specs.offload import count_fewest_bytes
from hmoe.units import format_bytes


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Raise ConfigError for an optimiser whose updates are not computed here."""
    groups = optimizer.param_groups
    is_right = isinstance(optimizer, torch.optim.AdamW) and all(
        group["fused"] and not group["amsgrad"] for group in groups
    )
    if not is_right:
        raise ConfigError(
            f"offload: optimizer is {type(optimizer).__name__}, must be torch.optim.AdamW with fused=True and without "
            "amsgrad",
            argument="optimizer",
        )


def check_homes(homes: Sequence[ExpertHome], most_bytes: int, reads_only: bool) -> torch.dtype:
    """Return the type of the experts' weights; raise ConfigError unless so much memory is enough for them."""
    if not homes:
        raise ConfigError("offload: the model has no layer of hmoe.MoE; nearest is no offload")
    weights = [next(home.module.parameters(recurse=False)) for home in homes]
    if reads_only and any(weight.requires_grad for weight in weights):
        raise ConfigError(
            "offload: reads_only = True: the experts' weights take gradients; call model.requires_grad_(False) before",
            argument="reads_only",
        )
    dtype = weights[0].dtype
    fewest = count_fewest_bytes([home.widths for home in homes], homes[0].dim, dtype.itemsize)
    if most_bytes < fewest:
        raise ConfigError(
            f"offload: most_bytes = {most_bytes}: must hold the two widest experts; nearest is {fewest} "
            f"({format_bytes(fewest)})",
            argument="most_bytes",
        )
    return dtype
