"""How much each expert, width, layer and domain is used, in tokens and in compute (HMoE, figures 3, 5 and 6)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hmoe.analyze.tally import Tally, divide_known
from hmoe.analyze.traced_text import Row
from hmoe.statistics.jackknife import EstimateInterval, estimate_jackknife_interval

_RARE = 0.01  # of what random routing gives


def measure_activation(tally: Tally) -> dict[str, list[Row]]:
    """Return the tables experts, widths, layers, experts_per_token and domains.

    The activation ratio of an expert is its pairs divided by tokens; that of a width the mean over its experts and
    layers; that of tokens their hidden units divided by all of a layer (table 3). The null is routing that gives each
    token as many experts as it has, drawn without regard to the token and to the expert: (experts per token) / experts
    for ratios; shares of compute have none. Intervals leave out documents.
    """
    return {
        "experts": _list_experts(tally),
        "widths": _list_widths(tally),
        "layers": _list_layers(tally),
        "experts_per_token": _list_experts_per_token(tally),
        "domains": _list_domains(tally),
    }


def _list_experts(tally: Tally) -> list[Row]:
    pairs_ZE, tokens = tally.pairs_by_fold.sum(0), int(tally.tokens_by_fold.sum())
    ratio = estimate_jackknife_interval(divide_known, [tally.pairs_by_fold, tally.tokens_by_fold])
    null_Z = divide_known(pairs_ZE.sum(1), tokens * len(tally.widths))
    work_ZE = pairs_ZE * np.array(tally.widths)
    compute_ZE = divide_known(work_ZE, work_ZE.sum(1, keepdims=True))
    probability_ZE = divide_known(tally.probs_by_fold.sum(0), tokens)
    rows = []
    for layer, block in enumerate(tally.blocks):
        for expert, width in enumerate(tally.widths):
            place = (layer, expert)
            is_rare = ratio.value[place] < _RARE * null_Z[layer]
            rows.append({
                "layer": layer, "block": block, "expert": expert, "width": width, "tokens": int(pairs_ZE[place]),
                **name_interval(ratio, place, "ratio"), "ratio_null": clean_number(null_Z[layer]),
                "compute_share": clean_number(compute_ZE[place]), "probability": clean_number(probability_ZE[place]),
                "state": "dead" if pairs_ZE[place] == 0 else "rare" if is_rare else "",
            })  # fmt: skip
    return rows


def _list_widths(tally: Tally) -> list[Row]:
    widths, width_E = sorted(set(tally.widths)), np.array(tally.widths)
    pairs_ZE, tokens = tally.pairs_by_fold.sum(0), tally.tokens_by_fold.sum()
    work_E = (pairs_ZE * width_E).sum(0)
    null = divide_known(pairs_ZE.sum(), tokens * pairs_ZE.size)
    rows = []
    for width in widths:
        own_E = width_E == width
        ratio = estimate_jackknife_interval(
            lambda pairs, count, own_E=own_E: divide_known(
                pairs[:, own_E].sum(), count * own_E.sum() * len(pairs)
            ),
            [tally.pairs_by_fold, tally.tokens_by_fold],
        )
        rows.append({
            "width": width, "num_experts": int(own_E.sum()), **name_interval(ratio, (), "ratio"),
            "ratio_null": clean_number(null),
            "token_share": clean_number(divide_known(pairs_ZE[:, own_E].sum(), pairs_ZE.sum())),
            "compute_share": clean_number(divide_known(work_E[own_E].sum(), work_E.sum())),
        })  # fmt: skip
    return rows


def _list_layers(tally: Tally) -> list[Row]:
    """Return the activated ratio of each layer, and over all of them where layer is None."""
    width_E = np.array(tally.widths)
    whole = width_E.sum()
    by_layer = estimate_jackknife_interval(
        lambda pairs, count: divide_known((pairs * width_E).sum(1), count * whole),
        [tally.pairs_by_fold, tally.tokens_by_fold],
    )
    overall = estimate_jackknife_interval(
        lambda pairs, count: divide_known((pairs * width_E).sum(), count * whole * len(pairs)),
        [tally.pairs_by_fold, tally.tokens_by_fold],
    )
    per_token_Z = divide_known(tally.pairs_by_fold.sum((0, 2)), tally.tokens_by_fold.sum())
    rows = []
    for layer, block in [*enumerate(tally.blocks), (None, None)]:
        experts = per_token_Z.mean() if layer is None else per_token_Z[layer]
        interval = overall if layer is None else by_layer
        rows.append({
            "layer": layer, "block": block,
            "activated_ratio": clean_number(interval.value[() if layer is None else layer]),
            **_name_ends(interval, () if layer is None else (layer,)),
            "null": clean_number(experts / len(tally.widths)), "experts_per_token": clean_number(experts),
        })  # fmt: skip
    return rows


def _list_experts_per_token(tally: Tally) -> list[Row]:
    return [
        {
            "layer": layer,
            "experts": experts,
            "tokens": int(tokens),
            "share": clean_number(tokens / max(counts.sum(), 1)),
        }
        for layer, counts in enumerate(tally.num_experts)
        for experts, tokens in enumerate(counts)
    ]


def _list_domains(tally: Tally) -> list[Row]:
    width_E = np.array(tally.widths)
    whole = width_E.sum() * len(tally.blocks)
    rows = []
    for name, tokens, pairs in zip(tally.domains, tally.domain_tokens, tally.domain_pairs, strict=True):
        interval = estimate_jackknife_interval(
            lambda pairs, count: divide_known((pairs * width_E).sum(), count * whole), [pairs, tokens]
        )
        rows.append({
            "domain": name, "tokens": int(tokens.sum()),
            "activated_ratio": clean_number(interval.value), **_name_ends(interval, ()),
        })  # fmt: skip
    return rows


def name_interval(interval: EstimateInterval, place: tuple[int, ...], name: str) -> Row:
    """Return an entry of an interval as `name`, `name_low`, `name_high` of a row."""
    ends = _name_ends(interval, place)
    return {
        name: clean_number(interval.value[place]),
        f"{name}_low": ends["low"],
        f"{name}_high": ends["high"],
    }


def _name_ends(interval: EstimateInterval, place: Sequence[int]) -> Row:
    index = tuple(place)
    # Of few documents an interval may reach over what a share can be.
    low, high = np.clip(interval.low[index], 0, 1), np.clip(interval.high[index], 0, 1)
    return {"low": clean_number(low), "high": clean_number(high)}


def clean_number(value: Any) -> float | None:
    """Return a plain float, None for what is no number: tables have neither NaN nor NumPy's own types."""
    return float(value) if np.isfinite(value) else None
