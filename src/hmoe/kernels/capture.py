"""CUDA graphs: what is copied or loaded at a first call cannot be captured."""

import functools
from collections.abc import Hashable

import torch

from hmoe.errors import ConfigError


@functools.lru_cache(maxsize=1024)
def check_first_call(what: str, sizes: Hashable, device: torch.device) -> None:
    """Nothing, but at the first call with these sizes.

    Raises:
        ConfigError: if a CUDA graph is being captured at the first call, which copies constants to the GPU and loads kernels.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise ConfigError(
            f"{what}: its first call copies constants to the GPU and loads kernels, which a CUDA graph cannot capture; call the "
            "layer once, forward and backward, before the capture"
        )
