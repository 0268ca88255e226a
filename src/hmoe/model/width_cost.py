"""Width as the router's probabilities expect it, whatever was chosen (H. Freed's nanoMOE: its compute loss)."""

from collections.abc import Sequence

import torch

from hmoe.model.statistics import RouterStatistics
from hmoe.model.waiting import get_constant


def compute_width_cost(statistics: RouterStatistics, widths: Sequence[int]) -> torch.Tensor:
    """Return the probability-weighted width: mean over tokens of sum_i p_i h_i / mean(h).

    Unlike the parameter penalty it does not multiply by the load, so an expert that nobody chooses is pushed down
    as well as one that all do. A uniform router gives 1, unless there are zero-computation experts, which have
    width 0 and do not count in the mean.
    """
    prob = statistics.prob_E
    mean = sum(widths) / sum(1 for width in widths if width)
    return (prob * get_constant(tuple(widths), prob.dtype, prob.device)).sum(-1) / mean
