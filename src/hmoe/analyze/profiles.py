"""Profiles of experts: which domains and kinds of tokens each of them serves more or less often than others."""

import numpy as np

from hmoe.analyze.activation import clean_number
from hmoe.analyze.count_null import compute_null_lifts
from hmoe.analyze.labellings import Labelling
from hmoe.analyze.tally import Table, Tally, divide_known
from hmoe.analyze.traced_text import Floats, Row
from hmoe.statistics.jackknife import EstimateInterval, estimate_jackknife_interval
from hmoe.statistics.paired import adjust_holm
from hmoe.statistics.student_t import compute_t_quantile

_FEWEST_TOKENS = 20  # of a class in all, and of folds with it: fewer have no p
_FEWEST_FOLDS = 6
_FEWEST_DEGREES = 4  # of freedom: of fewer the jackknife's error is no measure


def list_profiles(tally: Tally, labelling: Labelling) -> list[Row]:
    """Return for each layer, expert and class how much more often than others the expert serves the class.

    - share: of the class among the expert's pairs that have a class; pairs: how many these are.
    - lift: the share by the class's share of all pairs of the layer, with its jackknife interval over folds.
    - lift_null: what routing gives that looks at how many experts a token takes, but not at the token: 1 where all
      take as many, else also what rare experts get of classes whose tokens take many.
    - p: of a lift that differs from lift_null, by Student's t with the jackknife's error and the effective folds less
      one as degrees of freedom, after Holm's correction over all layers, experts and classes of the labelling. None
      where the class has fewer than 20 tokens or is in fewer than six folds, or the degrees are fewer than four.

    Args:
        tally: of the tokens read.
        labelling: of them.
    """
    pairs = labelling.pairs.sum(0)
    interval = estimate_jackknife_interval(_compute_lifts, [labelling.pairs])
    null = np.stack([_compute_class_nulls(labelling, layer) for layer in range(pairs.shape[1])], 1)
    share = divide_known(pairs, pairs.sum(0))
    tails = adjust_holm(_compute_tails(labelling, interval, null))
    return [
        {
            "layer": layer,
            "expert": expert,
            "width": int(tally.widths[expert]),
            "label": labelling.name,
            "class": str(labelling.classes[label_class]),
            "pairs": int(pairs[place]),
            "share": clean_number(share[place]),
            "lift": clean_number(interval.value[place]),
            "low": clean_number(np.maximum(interval.low[place], 0)),
            "high": clean_number(interval.high[place]),
            "lift_null": clean_number(null[place]),
            "p": tails.get(str(place)),
        }
        for layer in range(pairs.shape[1])
        for expert in range(pairs.shape[2])
        for label_class in range(len(pairs))
        for place in [(label_class, layer, expert)]
    ]


def _compute_lifts(pairs: Table) -> Floats:
    """Return the lift of each class, layer and expert."""
    by_layer = pairs.sum(2, keepdims=True)
    return divide_known(divide_known(pairs, pairs.sum(0)), divide_known(by_layer, by_layer.sum(0)))


def _compute_class_nulls(labelling: Labelling, layer: int) -> Floats:
    """Return the lifts (classes, experts) of routing that looks at the number of experts alone."""
    tokens_CX = labelling.num_experts[:, layer].T
    counts = np.flatnonzero(tokens_CX.any(1))
    pairs_KE = labelling.pairs.sum(0)[:, layer]
    tokens_CX = tokens_CX[counts]
    per_token = compute_null_lifts(pairs_KE.sum(0), counts, tokens_CX.sum(1), tokens_CX)
    # By pairs, as the lifts are: a class has experts x tokens of them.
    mean_X = divide_known(counts @ tokens_CX, tokens_CX.sum(0))
    mean = divide_known((counts @ tokens_CX).sum(), tokens_CX.sum())
    return np.asarray(divide_known(per_token.T, divide_known(mean_X, mean)[:, None]))


def _compute_tails(labelling: Labelling, interval: EstimateInterval, null: Floats) -> dict[str, float]:
    """Return p of each class, layer and expert, by its place, where there is one."""
    from scipy import stats  # noqa: PLC0415 - optional extra

    num_folds = int(labelling.pairs.any((1, 2, 3)).sum())
    if num_folds < _FEWEST_FOLDS:
        return {}
    quantile = compute_t_quantile(0.05, num_folds - 1)
    is_tested = (labelling.tokens.sum(0) >= _FEWEST_TOKENS) & ((labelling.tokens > 0).sum(0) >= _FEWEST_FOLDS)
    degrees = _count_effective_folds(labelling) - 1
    tails = {}
    for place in np.ndindex(null.shape):
        error = (interval.high[place] - interval.value[place]) / quantile
        distance = interval.value[place] - null[place]
        if (
            is_tested[place[0]]
            and np.isfinite(error)
            and np.isfinite(distance)
            and degrees[place] >= _FEWEST_DEGREES
        ):
            # What does not vary at all and lies at its null is no finding.
            t = abs(distance) / error if error > 0 else (0.0 if abs(distance) < 1e-9 else np.inf)
            tails[str(place)] = float(2 * stats.t.sf(t, degrees[place]))
    return tails


def _count_effective_folds(labelling: Labelling) -> Floats:
    """Return from how many equally large folds each lift (classes, Z, E) may as well be, the fewest of four.

    Those of the class, of all other classes, of the expert's pairs and of all others': an expert that serves few
    documents has an error that few documents tell.
    """
    pairs_FZE = labelling.pairs.sum(1)
    tokens_FC = labelling.tokens
    by_class = np.minimum(
        _count_effective(tokens_FC), _count_effective(tokens_FC.sum(1, keepdims=True) - tokens_FC)
    )
    others_FZE = pairs_FZE.sum(2, keepdims=True) - pairs_FZE
    by_expert = np.minimum(_count_effective(pairs_FZE), _count_effective(others_FZE))
    return np.minimum(by_class[:, None, None], by_expert)


def _count_effective(counts: Table) -> Floats:
    """Return (sum n)^2 / sum n^2 over the first axis; 0 where there is nothing."""
    counts = counts.astype(np.float64)
    return np.nan_to_num(divide_known(np.square(counts.sum(0)), np.square(counts).sum(0)))
