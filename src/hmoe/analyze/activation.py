"""How much each expert, width, layer and domain is used, in tokens and in compute (HMoE, figures 3, 5 and 6)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hmoe.analyze.tally import Tally, divide_known
from hmoe.analyze.traced_text import Row
from hmoe.statistics.jackknife import EstimateInterval, estimate_jackknife_interval

_RARE = 0.01  # of what random routing gives
_FEWEST_EXPECTED = 20  # tokens that random routing gives an expert which is called dead without them


def measure_activation(tally: Tally) -> dict[str, list[Row]]:
    """Return the tables experts, widths, layers, experts_per_token and domains.

    The activation ratio of an expert is its pairs divided by tokens; that of a width the mean over its experts and
    layers; that of tokens their hidden units divided by all of a layer (table 3). The null is routing that gives each
    token as many experts as it has, drawn without regard to the token and to the expert: (experts per token) / experts
    for ratios, the share of experts for shares of tokens, and the share of hidden units for shares of compute.
    Intervals leave out documents. An expert without tokens is dead, or, if random routing gave it fewer than 20 too,
    unseen; with less than a hundredth of what random routing gives it is rare.
    """
    return {
        "experts": _list_experts(tally),
        "widths": _list_widths(tally),
        "layers": _list_layers(tally),
        "experts_per_token": _list_experts_per_token(tally),
        "domains": _list_domains(tally),
    }


def _list_experts(tally: Tally) -> list[Row]:
    width_E = np.array(tally.widths)
    pairs_ZE, tokens = tally.pairs_by_fold.sum(0), int(tally.tokens_by_fold.sum())
    ratio = estimate_jackknife_interval(divide_known, [tally.pairs_by_fold, tally.tokens_by_fold])
    null_Z = divide_known(pairs_ZE.sum(1), tokens * len(tally.widths))
    compute = estimate_jackknife_interval(
        lambda pairs_ZE: divide_known(pairs_ZE * width_E, (pairs_ZE @ width_E)[:, None]),
        [tally.pairs_by_fold],
    )
    compute_null_E = divide_known(width_E, width_E.sum())
    probability_ZE = divide_known(tally.probs_by_fold.sum(0), tokens)
    return [
        {
            "layer": layer, "block": block, "expert": expert, "width": width, "tokens": int(pairs_ZE[layer, expert]),
            **name_interval(ratio, (layer, expert), "ratio"), "ratio_null": clean_number(null_Z[layer]),
            **name_interval(compute, (layer, expert), "compute_share"),
            "compute_share_null": clean_number(compute_null_E[expert]),
            "probability": clean_number(probability_ZE[layer, expert]),
            "state": _name_state(int(pairs_ZE[layer, expert]), tokens * null_Z[layer]),
        }
        for layer, block in enumerate(tally.blocks)
        for expert, width in enumerate(tally.widths)
    ]  # fmt: skip


def _name_state(tokens: int, expected: float) -> str:
    """Return what is wrong with an expert that has so many tokens, and so many if routing were random."""
    if not tokens:
        return "dead" if expected >= _FEWEST_EXPECTED else "unseen"
    return "rare" if tokens < _RARE * expected else ""


def _list_widths(tally: Tally) -> list[Row]:
    widths, width_E = sorted(set(tally.widths)), np.array(tally.widths)
    own_WE = np.array(widths)[:, None] == width_E
    tables = [tally.pairs_by_fold, tally.tokens_by_fold]
    ratio = estimate_jackknife_interval(
        lambda pairs, tokens: divide_known(own_WE @ pairs.sum(0), tokens * own_WE.sum(1) * len(pairs)), tables
    )
    token_share = estimate_jackknife_interval(
        lambda pairs: divide_known(own_WE @ pairs.sum(0), pairs.sum()), tables[:1]
    )
    compute_share = estimate_jackknife_interval(
        lambda pairs: divide_known(own_WE @ (pairs.sum(0) * width_E), pairs.sum(0) @ width_E), tables[:1]
    )
    pairs_ZE = tally.pairs_by_fold.sum(0)
    null = divide_known(pairs_ZE.sum(), tally.tokens_by_fold.sum() * pairs_ZE.size)
    return [
        {
            "width": width, "num_experts": int(own_E.sum()),
            **name_interval(ratio, (place,), "ratio"), "ratio_null": clean_number(null),
            **name_interval(token_share, (place,), "token_share"), "token_share_null": clean_number(own_E.mean()),
            **name_interval(compute_share, (place,), "compute_share"),
            "compute_share_null": clean_number(divide_known(width_E[own_E].sum(), width_E.sum())),
        }
        for place, (width, own_E) in enumerate(zip(widths, own_WE, strict=True))
    ]  # fmt: skip


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
        experts = divide_known(pairs.sum(), tokens.sum() * len(tally.blocks))
        rows.append({
            "domain": name, "tokens": int(tokens.sum()),
            "activated_ratio": clean_number(interval.value), **_name_ends(interval, ()),
            "null": clean_number(experts / len(tally.widths)), "experts_per_token": clean_number(experts),
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
