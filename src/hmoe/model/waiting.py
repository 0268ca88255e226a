"""Where the host would wait for a device, or a compiler would refuse: reading values, and small copies."""

import functools

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


def would_wait(tensor: torch.Tensor) -> bool:
    """Tell whether reading a value of the tensor would wait for a device; eagerly on a CPU it would not."""
    return torch.compiler.is_compiling() or tensor.device.type != "cpu"


def may_wait(tensor: torch.Tensor) -> bool:
    """Tell whether the host may wait: not in training, where every layer would, nor in a graph's capture."""
    # Asked first, because a compiler cannot trace the question about CUDA graphs.
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


def get_constant(values: tuple[int | float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return numbers that never change as a tensor, which nobody may write into.

    They are copied to the device once and kept, because a copy from the host waits.
    """
    if torch.compiler.is_compiling() or _faking():
        # Not kept: a fake tensor in the cache would reach passes that compute with real ones.
        return torch.tensor(values, dtype=dtype, device=device)
    return _copy_once(values, dtype, device)


def _faking() -> bool:
    return any(isinstance(mode, FakeTensorMode) for mode in _get_current_dispatch_mode_stack())


@functools.lru_cache(maxsize=256)
def _copy_once(values: tuple[int | float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    # Serving may ask first and training later, which cannot save an inference tensor for its backward pass.
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
