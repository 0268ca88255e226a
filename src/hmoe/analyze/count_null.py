"""Routing that looks at how many experts a token takes, but not at the token: the null of what experts like.

Experts are drawn by conditional Poisson sampling: of all draws of different experts for a token that give each expert
its share of the pairs it is the one without further structure. A set of so many experts has a probability proportional
to the product of their weights.
"""

import numpy as np
import numpy.typing as npt

from hmoe.analyze.traced_text import Floats, Ints

_MOST_STEPS, _TOLERANCE = 300, 1e-6  # of fitting weights
_ALWAYS, _WEIGHT_OF_ALWAYS = 0.999, 1e6  # share of the tokens from which an expert counts as serving all


def compute_null_lifts(
    pairs_E: Ints, counts: Ints, tokens: Ints, tokens_CX: npt.NDArray[np.integer]
) -> Floats:
    """Return how many times as often as all tokens those of each kind have each expert under this null (E, X).

    1 where all tokens have as many experts; 0 for experts without pairs.

    Args:
        pairs_E: of each expert.
        counts, tokens: how many experts tokens have, and how many tokens have so many.
        tokens_CX: the same tokens by kind, a row for each of the counts.
    """
    if np.count_nonzero(tokens) < 2:
        return np.ones((len(pairs_E), tokens_CX.shape[1]))
    inclusion_EC = compute_inclusion(fit_weights(pairs_E, counts, tokens), counts)
    mean_E = inclusion_EC @ tokens / tokens.sum()
    rate_EX = inclusion_EC @ tokens_CX / np.maximum(tokens_CX.sum(0), 1)
    return np.where(mean_E[:, None] > 0, rate_EX / np.maximum(mean_E, 1e-300)[:, None], 0.0)


def fit_weights(pairs_E: Ints, counts: Ints, tokens: Ints) -> Floats:
    """Return weights of experts by which tokens with so many different ones have them in proportion to these pairs.

    Args:
        pairs_E: of each expert.
        counts, tokens: how many experts tokens have, and how many tokens have so many.
    """
    served = int(tokens[counts > 0].sum())
    wanted_E = pairs_E * ((counts * tokens).sum() / max(1, pairs_E.sum()))
    weight_E = np.where(pairs_E > 0, 1.0, 0.0)
    always_E = wanted_E > _ALWAYS * served
    weight_E[always_E] = _WEIGHT_OF_ALWAYS
    fitted_E = (pairs_E > 0) & ~always_E
    for _ in range(_MOST_STEPS if fitted_E.any() else 0):
        expected_E = (compute_inclusion(weight_E, counts) * tokens).sum(1)
        ratio_E = (wanted_E / np.maximum(expected_E, 1e-300))[fitted_E]
        weight_E[fitted_E] *= ratio_E
        weight_E[fitted_E] /= np.exp(np.log(weight_E[fitted_E]).mean())
        if np.ptp(ratio_E) < _TOLERANCE:
            break
    return weight_E


def compute_inclusion(weight_E: Floats, counts: Ints) -> Floats:
    """Return the probability with which each expert is among so many different ones (E, counts)."""
    most = int(counts.max(initial=0))
    sums_EC = np.zeros((len(weight_E), most + 1))  # over sets of so many experts, without each in turn
    sums_EC[:, 0] = 1
    for expert, weight in enumerate(weight_E):
        added = weight * sums_EC[:, :-1]
        added[expert] = 0
        sums_EC[:, 1:] += added
    with_EC = np.zeros_like(sums_EC)
    with_EC[:, 1:] = weight_E[:, None] * sums_EC[:, :-1]
    return np.asarray((with_EC / np.maximum(with_EC + sums_EC, 1e-300))[:, counts])
