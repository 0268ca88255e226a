"""Random numbers as a pure function of a seed: the same on every device, in a recomputed block, and after a resume."""

import torch

_GAMMA, _MIX_1, _MIX_2 = (value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def uniform(seed: int | torch.Tensor, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Float64 numbers in (0, 1), by splitmix64 of (seed, place)."""
    numbers = 1
    for size in shape:
        numbers *= size
    z = torch.arange(1, numbers + 1, device=device) * _GAMMA
    if not isinstance(seed, torch.Tensor):
        seed = torch.full(
            (), seed % 2**63, dtype=torch.int64, device=device
        )  # made there: a copy from the host would wait
    z = _mixed(z + _mixed(seed.to(device, torch.int64) * _GAMMA))
    return ((_shifted(z, 11).double() + 0.5) * 2.0**-53).view(shape)


def _mixed(z: torch.Tensor) -> torch.Tensor:
    z = (z ^ _shifted(z, 30)) * _MIX_1
    z = (z ^ _shifted(z, 27)) * _MIX_2
    return z ^ _shifted(z, 31)


def _shifted(z: torch.Tensor, bits: int) -> torch.Tensor:
    """Right shift of 64 bits without a sign; integers wrap as they should, but PyTorch shifts the sign in."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
