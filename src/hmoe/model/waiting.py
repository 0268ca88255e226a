"""Where the host would wait for a device, or a compiler would refuse: values that are asked for, and small copies."""

import functools

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


def would_wait(tensor: torch.Tensor) -> bool:
    """Whether asking for a value of the tensor has a price: on a CPU, eagerly, it has none."""
    return torch.compiler.is_compiling() or tensor.device.type != "cpu"


def may_wait(tensor: torch.Tensor) -> bool:
    """Whether the price may be paid: not while training, where it would be paid in every layer, nor while a CUDA graph is captured."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled():  # first: a compiler cannot trace the question below
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


def constant(values: tuple[int | float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Numbers that never change as a tensor, which nobody may write into; copied to the device once, since a copy waits."""
    if torch.compiler.is_compiling() or any(
        isinstance(mode, FakeTensorMode) for mode in _get_current_dispatch_mode_stack()
    ):
        return torch.tensor(values, dtype=dtype, device=device)  # a fake tensor must not be kept
    return _kept(values, dtype, device)


@functools.lru_cache(maxsize=256)
def _kept(values: tuple[int | float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):  # training may use what serving asked for first
        return torch.tensor(values, dtype=dtype, device=device)
