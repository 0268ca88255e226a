"""Where weights lie in memory: the last bit of a CPU library's products may depend on it."""

import itertools

from torch import nn

ALIGNMENT = 64  # bytes, as PyTorch's own allocations on the CPU


def align_memory(module: nn.Module) -> None:
    """Copy parameters and buffers that lie askew in CPU memory, such as views of a file, to aligned memory.

    Tied parameters stay tied.
    """
    # `parameters()` gives a tied one once, and its data is replaced: all modules that hold it see the copy.
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()
