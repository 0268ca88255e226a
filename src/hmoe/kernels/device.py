"""Whether Triton's kernels run on a device; asked for every layer, so the answers are kept."""

import functools
import importlib.util

import torch

OLDEST = (8, 0)  # compute capability: Ampere


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def runs_triton(device: torch.device) -> bool:
    """Whether this is a GPU that the kernels are for, and Triton is there."""
    return device.type == "cuda" and has_triton() and torch.cuda.get_device_capability(device) >= OLDEST


def fuses(tensor: torch.Tensor) -> bool:
    """Whether a small kernel of ours takes the place of several operations on this tensor; a compiler fuses them itself."""
    low = tensor.dtype in (torch.bfloat16, torch.float16, torch.float32)
    return low and not torch.compiler.is_compiling() and runs_triton(tensor.device)
