"""CUDA graphs: what is copied or loaded at a first call cannot be captured."""

import functools
from collections.abc import Hashable

import torch

from hmoe.errors import ConfigError


# The cache is the memory of earlier calls: a call that raised is not kept, so it is checked again.
@functools.lru_cache(maxsize=1024)
def check_first_call(caller: str, sizes: Hashable, device: torch.device) -> None:
    """Raise ConfigError if a CUDA graph is being captured during the first call with these sizes.

    A first call copies constants to the GPU and loads kernels, which cannot be captured.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise ConfigError(
            f"{caller}: its first call copies constants to the GPU and loads kernels, which a CUDA graph "
            "cannot capture; call the layer once, forward and backward, before the capture"
        )
