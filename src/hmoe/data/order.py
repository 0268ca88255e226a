"""Random orders that need no memory: a keyed permutation of [0, size) evaluated at any index."""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

_ROUNDS = 6
Indices = npt.NDArray[np.uint64]


def permute(index_N: Indices, size: int, *key: Any) -> Indices:
    """Position of each index under the permutation of [0, size) that `key` names.

    A Feistel network over the next even power of two; values that fall outside are sent through it again.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    digest = hashlib.sha256(repr(key).encode()).digest()
    keys = [np.uint64(int.from_bytes(digest[4 * r : 4 * r + 4], "big")) for r in range(_ROUNDS)]
    result = index_N.astype(np.uint64)
    outside = np.ones(len(result), dtype=bool)
    while outside.any():
        left, right = result[outside] >> half, result[outside] & mask
        for k in keys:
            left, right = right, left ^ (_mix(right + (k << np.uint64(32))) & mask)
        result[outside] = (left << half) | right
        outside = result >= size
    return result


def _mix(x: Indices) -> Indices:
    """SplitMix64's finaliser."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
