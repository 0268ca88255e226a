"""Experts that learned nothing: the null of what experts do and of how their weights match."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hmoe.statistics.unit_matching import match_units

MATCHED_UNITS = 512  # of the narrower expert
_NUM_DRAWS = 3
_MANY_UNITS = 64  # over which a mean is steady enough that one draw is enough


class RandomExperts:
    """Draws experts as a model's weights are before training, and tells how alike two of them are.

    Args:
        dim: of the model.
        num_terms: that are added up in the residual stream, by which outputs are scaled.
        seed: of the draws.

    Attributes:
        rng: for other draws of the same null.
    """

    def __init__(self, dim: int, num_terms: int, seed: int) -> None:
        self._dim, self._num_terms = dim, num_terms
        self.rng = np.random.default_rng(seed)
        self._generator = torch.Generator().manual_seed(seed)
        self._cosines: dict[tuple[int, int], float] = {}

    def draw_expert(self, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return w_gate (h, D), w_up (h, D), w_down (D, h)."""
        w_gate, w_up, w_down = (
            torch.randn(width, self._dim, generator=self._generator) * scale
            for scale in (self._dim**-0.5, self._dim**-0.5, (width * self._num_terms) ** -0.5)
        )
        return w_gate, w_up, w_down.T

    def get_cosine(self, width_a: int, width_b: int) -> float:
        """Return the mean cosine of matched hidden units of two random experts."""
        key = (min(width_a, width_b), max(width_a, width_b))
        if key not in self._cosines:
            num_draws = 1 if key[0] >= _MANY_UNITS else _NUM_DRAWS
            units = [[join_units(self.draw_expert(width)) for width in key] for _ in range(num_draws)]
            draws = [match_units(first, second, MATCHED_UNITS) for first, second in units]
            self._cosines[key] = sum(draws) / len(draws)
        return self._cosines[key]


def join_units(expert: Sequence[torch.Tensor]) -> Any:
    """Return the hidden units of an expert (h, 3 D)."""
    w_gate, w_up, w_down = expert
    return torch.cat([w_gate, w_up, w_down.T], dim=1).float().numpy()
