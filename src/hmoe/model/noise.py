"""Random numbers as a function of a seed: equal on all devices, in a recomputed block, after a resume."""

import torch

# Constants of splitmix64 (Steele, Lea and Flood 2014); signed, since PyTorch has no arithmetic on uint64.
_GAMMA, _MIX_1, _MIX_2 = (
    value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)  # fmt: skip


def draw_seeded_uniform(
    seed: int | torch.Tensor, shape: tuple[int, ...], device: torch.device
) -> torch.Tensor:
    """Return float64 numbers in (0, 1) of this shape, by splitmix64 of (seed, place).

    Integers that are equal modulo 2**63 are the same seed.
    """
    count = 1
    for size in shape:
        count *= size
    state = torch.arange(1, count + 1, device=device) * _GAMMA
    if not isinstance(seed, torch.Tensor):
        # Filled in on the device: a copy from the host would wait for it.
        seed = torch.full((), seed % 2**63, dtype=torch.int64, device=device)
    # The seed is mixed before it is added: else neighbours would give the same numbers, one place apart.
    bits = _mix_bits(state + _mix_bits(seed.to(device, torch.int64) * _GAMMA))
    # 53 bits fill a float64; the half keeps 0 and 1 out, whose logarithms the Gumbel noise takes.
    return ((_shift_right(bits, 11).double() + 0.5) * 2.0**-53).view(shape)


def _mix_bits(state: torch.Tensor) -> torch.Tensor:
    """Apply the output function of splitmix64."""
    state = (state ^ _shift_right(state, 30)) * _MIX_1
    state = (state ^ _shift_right(state, 27)) * _MIX_2
    return state ^ _shift_right(state, 31)


def _shift_right(z: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift 64 bits to the right and fill in zeros; PyTorch's own shift fills in the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
