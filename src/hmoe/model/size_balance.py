"""Load balance within each width, which leaves the share between widths free (after H. Freed's nanoMOE)."""

from collections.abc import Sequence

import torch

from hmoe.model.statistics import RouterStatistics
from hmoe.model.waiting import get_constant

_SMALLEST = 1e-30  # of what probabilities are divided by: without tokens, or where all of them underflow


def compute_size_balance(statistics: RouterStatistics, widths: Sequence[int]) -> torch.Tensor:
    """Return the balance within widths: mean over groups g of n_g sum_i (T_i / T_g) (P_i / P_g).

    A group are the n_g experts of one width, T_g and P_g its sums; only groups of more than one expert
    count, and no zero-computation experts. At balance within all groups it is 1, where each has one expert do
    everything it is the mean n_g. A group without tokens gives 0.

    The source takes n_g sum_i T_i P_i, which a router also lowers by sending less to the whole group; divided by
    the group's own sums, what a group gets has no part in it.
    """
    prob_sum = statistics.prob_sum_E  # perhaps with an axis of layers in front
    same, weight = _find_groups(tuple(widths))
    same_EE = get_constant(same, prob_sum.dtype, prob_sum.device).view(len(widths), len(widths))
    weight_E = get_constant(weight, prob_sum.dtype, prob_sum.device)
    load = statistics.load_E.to(prob_sum.dtype)
    share = load / (load.unsqueeze(-2) * same_EE).sum(-1).clamp(min=1)
    prob = prob_sum / (prob_sum.unsqueeze(-2) * same_EE).sum(-1).clamp(min=_SMALLEST)
    return (weight_E * share * prob).sum(-1)


def _find_groups(widths: tuple[int, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return which experts are equally wide, E x E flattened, and n_g / groups of each expert, 0 if it is alone."""
    sizes = [widths.count(width) if width else 1 for width in widths]
    num_groups = len({width for width, size in zip(widths, sizes, strict=True) if size > 1})
    same = tuple(float(width == other) for width in widths for other in widths)
    return same, tuple(size / max(num_groups, 1) if size > 1 else 0.0 for size in sizes)
