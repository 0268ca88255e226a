"""How a model that is opened gets memory for its weights: plainly, or with its experts elsewhere."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from hmoe.model.transformer import Transformer

# Of a model on the meta device; what it returns is a context in which weights are written.
Allocate = Callable[[Transformer], AbstractContextManager[object]]


def allocate_in_memory(model: Transformer) -> AbstractContextManager[object]:
    """Give a model memory, aligned as stored tensors are not, on the GPU where there is one."""
    model.to_empty(device="cuda" if torch.cuda.is_available() else "cpu")
    return nullcontext()


def allocate_on_cpu(model: Transformer) -> AbstractContextManager[object]:
    """Give a model memory on the CPU."""
    model.to_empty(device="cpu")
    return nullcontext()


def allocate_as(dtype: torch.dtype) -> Allocate:
    """Return what gives a model memory in a type of its own: stored weights are converted once, as they are read."""

    def allocate(model: Transformer) -> AbstractContextManager[object]:
        return allocate_in_memory(model.to(dtype))

    return allocate
