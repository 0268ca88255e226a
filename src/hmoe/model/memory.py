"""Where weights lie in memory: products of a processor's library may depend on it in their last bit."""

import itertools

from torch import nn

ALIGNMENT = 64  # bytes, as PyTorch's own allocations on the CPU


def align_memory(module: nn.Module) -> None:
    """Copy parameters and buffers that lie askew in CPU memory, such as views of a file, to aligned memory of their own.

    Tied parameters stay tied.
    """
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()
