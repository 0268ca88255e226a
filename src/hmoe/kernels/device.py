"""Whether Triton's kernels run on a device; asked for every layer, so the answers are kept."""

import contextlib
import functools
import importlib.util

import torch

OLDEST = (8, 0)  # compute capability: Ampere, the first that copies to shared memory asynchronously


@functools.cache
def has_triton() -> bool:
    """Return whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def runs_triton(device: torch.device) -> bool:
    """Return whether this is an NVIDIA GPU that the kernels are for, and Triton is there."""
    nvidia = device.type == "cuda" and torch.version.hip is None  # AMD's GPUs call themselves cuda too
    return nvidia and has_triton() and torch.cuda.get_device_capability(device) >= OLDEST


def use_device_of(tensor: torch.Tensor) -> contextlib.AbstractContextManager[object]:
    """Return a context whose launches go to the tensor's device: Triton takes the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def can_fuse(tensor: torch.Tensor) -> bool:
    """Return whether one of our kernels takes the place of several operations on this tensor."""
    low = tensor.dtype in (torch.bfloat16, torch.float16, torch.float32)
    # A compiler fuses the operations itself.
    return low and not torch.compiler.is_compiling() and runs_triton(tensor.device)
