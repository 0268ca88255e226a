"""Regions with and without autocast, also on devices (meta) that do not know it."""

import contextlib

import torch


def _knows_autocast(device: torch.device) -> bool:
    # The compiler of PyTorch 2.11 cannot trace the question; it compiles for devices that know autocast only.
    return torch.compiler.is_compiling() or torch.amp.is_autocast_available(device.type)


def find_autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the type in which autocast computes products; None where it is off."""
    on = _knows_autocast(device) and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if on else None


def disable_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return a region that computes in the types of its tensors."""
    return torch.autocast(device.type, enabled=False) if _knows_autocast(device) else contextlib.nullcontext()


def use_mixed_precision(device: torch.device, on: bool) -> contextlib.AbstractContextManager[object]:
    """Return a region whose products are computed in bfloat16 if `on`; the weights stay what they are."""
    # Switched on where autocast is unknown, PyTorch raises an error, which must not be hidden.
    if on or _knows_autocast(device):
        return torch.autocast(device.type, torch.bfloat16, enabled=on)
    return contextlib.nullcontext()
