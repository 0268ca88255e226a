"""Rotary positions on GPUs in one pass over memory; the definition is in `hmoe.model.rotary`."""

import torch


def rotate_pairs(x_BHLC: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the pairs (i, i + C/2) by angles whose cosines and sines are (B or 1, 1, L, C/2); no gradient."""
    from hmoe.kernels.ragged.rotation import launch_rotation  # noqa: PLC0415 - needs Triton

    return launch_rotation(x_BHLC, cos, sin)
