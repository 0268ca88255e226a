"""Rotary positions on GPUs in one pass over memory; the definition is in `hmoe.model.rotary`."""

import importlib.util

import torch


def fuses_rotation(x_BHLC: torch.Tensor) -> bool:
    """Whether the kernel rotates this tensor: on a GPU, in a type that it computes."""
    return (
        x_BHLC.is_cuda
        and x_BHLC.dtype in (torch.bfloat16, torch.float16, torch.float32)
        and importlib.util.find_spec("triton") is not None
        and torch.cuda.get_device_capability(x_BHLC.device) >= (8, 0)
    )


def rotate_pairs(x_BHLC: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The pairs (i, i + C/2) turned by angles whose cosines and sines are (B or 1, 1, L, C/2); no gradient."""
    from hmoe.kernels.ragged.rotation import launch  # noqa: PLC0415 - needs Triton

    return launch(x_BHLC, cos, sin)
