"""Modules with shapes and no values, for weights that are drawn or read from a file afterwards."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _Undrawn(TorchFunctionMode):
    """Makes initialisation do nothing, for which PyTorch would import its compiler and take seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # Every function of that module returns the tensor that it was given, by position or by name.
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextlib.contextmanager
def build_on_meta() -> Iterator[None]:
    """Make modules that have shapes and no values, inside the `with` block."""
    with torch.device("meta"), _Undrawn():
        yield
