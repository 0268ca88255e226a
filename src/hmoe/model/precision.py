"""Autocast, which some devices (meta) do not know."""

import contextlib

import torch


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The type that autocast computes products in; None where it is off."""
    on = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if on else None


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A region that computes in the types of its tensors."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else contextlib.nullcontext()


def mixed_precision(device: torch.device, on: bool) -> contextlib.AbstractContextManager[object]:
    """A region whose products are computed in bfloat16 if `on`; the weights stay what they are."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, torch.bfloat16, enabled=on) if available or on else contextlib.nullcontext()
