"""Give random orders that need no memory: a keyed permutation of [0, size) is evaluated at any index."""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

_ROUNDS = 6
Indices = npt.NDArray[np.uint64]


def permute_indices(index_B: Indices, size: int, *key: Any) -> Indices:
    """Return the position of each index (B,) under the permutation of [0, size) that `key` names.

    A Feistel network over the next even power of two; values that fall outside are sent through it again.
    """
    # Both halves of a value have as many bits, so the network's domain is at most four times `size`.
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    digest = hashlib.sha256(repr(key).encode()).digest()
    keys = [np.uint64(int.from_bytes(digest[4 * index : 4 * index + 4], "big")) for index in range(_ROUNDS)]
    position_B = index_B.astype(np.uint64)
    outside_B = np.ones(len(position_B), dtype=bool)
    # Repeating a permutation until it lands inside ("cycle walking") is a permutation of the inside.
    while outside_B.any():
        left, right = position_B[outside_B] >> half, position_B[outside_B] & mask
        for round_key in keys:
            left, right = right, left ^ (_mix_bits(right + (round_key << np.uint64(32))) & mask)
        position_B[outside_B] = (left << half) | right
        outside_B = position_B >= size
    return position_B


def _mix_bits(words: Indices) -> Indices:
    """Mix the bits of 64-bit words with SplitMix64's finaliser (Steele, Lea and Flood, 2014)."""
    with np.errstate(over="ignore"):  # products are meant modulo 2**64
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
