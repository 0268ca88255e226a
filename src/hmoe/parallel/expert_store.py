"""What a cache of experts asks of the place that they come from, and what it counts."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

Key = Hashable
Weights = Sequence[torch.Tensor]


class ExpertStore(Protocol):
    """Where a cache's experts come from. All is called in the cache's thread."""

    def count_bytes(self, key: Key) -> int:
        """Return the memory that an expert's weights take."""
        ...

    def fetch(self, key: Key, renews: bool) -> Weights:
        """Return an expert's weights in memory of their own, after the change that waits for them, if it `renews`."""
        ...

    def renew(self, key: Key, weights: Weights | None) -> None:
        """Apply the change that waits for an expert to its weights: those in memory, too, if there are any."""
        ...


@dataclass
class CacheCounts:
    """What a cache did.

    Attributes:
        hits: uses of an expert that was there.
        misses: uses for which somebody had to wait.
        wait_seconds: how long all of them waited.
    """

    hits: int = 0
    misses: int = 0
    wait_seconds: float = 0.0
