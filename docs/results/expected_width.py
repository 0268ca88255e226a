"""A loss of one's own: the width that the router's probabilities expect (after H. Freed's nanoMOE)."""

from hmoe import register_loss


def compute_expected_width(statistics, moe):
    """Return for each layer the mean over tokens of sum_i p_i h_i / mean(h); 1 for a router without preference.

    Unlike the parameter penalty it does not multiply by the load, so an expert that nobody chooses is pushed down as
    well as one that all do. Experts without hidden units do not count in the mean.
    """
    widths = moe.routed_widths
    mean = sum(widths) / sum(1 for width in widths if width)
    prob_E = statistics.prob_E
    return (prob_E * prob_E.new_tensor(widths)).sum(-1) / mean


register_loss(
    "expected_width",
    compute_expected_width,
    "width that probabilities expect, over the mean of widths",
    unequal_only=True,
)
