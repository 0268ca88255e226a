"""How a run came to route as it does: parameters and shares by width, losses, step by step. No torch.

Figures 11 and 12 of the HMoE paper. Values are those of single steps, as metrics.jsonl has them; what is smoothed for
the eye is smoothed by `smooth_values`, apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError
from hmoe.runs.run_logs import read_run_logs

_COUNTS = ("step", "tokens", "flops")
_PAIRS, _SHARES = "experts_per_token_by_layer", "expert_token_share"
Tables = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class TrainingMoment:
    """One row of a run's metrics.jsonl.

    Attributes:
        step: training steps, this one included.
        tokens, flops: up to there.
        seconds: training time up to there; None where no clock was kept.
        terms: every other number of the row by name: losses, validations, widths; None where it was not finite.
        pairs_per_token_ZE: how many of a step's tokens each expert served, divided by all of them, by MoE layer; None
            where the row does not tell, or the model is dense.
    """

    step: int
    tokens: int
    flops: int
    seconds: float | None
    terms: dict[str, float | None]
    pairs_per_token_ZE: tuple[tuple[float, ...], ...] | None


@dataclass(frozen=True)
class TrainingHistory:
    """A run's rows up to its newest checkpoint, or all where it has none yet.

    Attributes:
        path: the run folder.
        config: its recipe.
        moments: one for each row, in order.
        notes: what a reader of the numbers should know, a sentence each.
    """

    path: Path
    config: RunConfig
    moments: tuple[TrainingMoment, ...]
    notes: tuple[str, ...] = ()


def read_training_history(run: Path) -> TrainingHistory:
    """Read the logs of a run folder; neither weights nor data are read.

    Raises:
        ConfigError: if it is no run folder.
        CheckpointError: naming a damaged line of a log.
    """
    logs = read_run_logs(run)
    config, rows, notes = logs.config, logs.rows, list(logs.warnings)
    seconds = {row["step"]: row.get("seconds") for row in logs.timing}
    moments = [_read_moment(row, seconds.get(row["step"]), config) for row in rows]
    if config.model.moe is not None:
        notes += _list_notes(rows, moments)
    return TrainingHistory(run, config, tuple(moments), tuple(notes))


def list_history_tables(history: TrainingHistory) -> Tables:
    """Return flat tables of a run's training; those by width are empty for a dense model.

    Experts of equal width are one group. Activated parameters are those of its experts that a token used on average:
    pairs x 3 x model width x expert width / tokens, summed over MoE layers.

    Returns:
        history: step tokens flops seconds width num_experts activated_parameters token_share compute_share; shares are
            of the pairs, and of the activated hidden units, of all MoE layers.
        history_shares: step layer block width token_share compute_share, of one MoE layer each.
        history_terms: step tokens flops seconds name value.
    """
    tables: Tables = {"history": [], "history_shares": [], "history_terms": []}
    for moment in history.moments:
        counts = {name: getattr(moment, name) for name in (*_COUNTS, "seconds")}
        tables["history_terms"] += [
            {**counts, "name": name, "value": value} for name, value in moment.terms.items()
        ]
        layers = _sum_by_width(history.config, moment)
        if layers:
            tables["history"] += [{**counts, **row} for row in _list_widths(history.config, layers)]
            tables["history_shares"] += [
                {"step": moment.step, "layer": layer, "block": block, "width": width, **shares}
                for layer, (block, pairs) in enumerate(
                    zip(history.config.model.moe_layers, layers, strict=True)
                )
                for width, shares in _share_widths(pairs).items()
            ]
    return tables


def smooth_values(values: Sequence[float | None], window: int) -> list[float | None]:
    """Return the running mean of values, for the eye: each of those up to half a window before and after it.

    Both ends have fewer to take the mean of; unknown values are left out, and are unknown where there is no other.

    Raises:
        ConfigError: for a window below 1.
    """
    if window < 1:
        raise ConfigError(f"window = {window}: must be at least 1")
    half = window // 2
    if not half:
        return list(values)
    sums = [0.0, *accumulate(0.0 if value is None else float(value) for value in values)]
    counts = [0, *accumulate(value is not None for value in values)]
    smooth: list[float | None] = []
    for place in range(len(values)):
        first, end = max(0, place - half), min(len(values), place + half + 1)
        num_known = counts[end] - counts[first]
        smooth.append((sums[end] - sums[first]) / num_known if num_known else None)
    return smooth


def _read_moment(row: dict[str, Any], seconds: float | None, config: RunConfig) -> TrainingMoment:
    terms = {
        name: _get_finite(value)
        for name, value in row.items()
        if name not in _COUNTS and (value is None or _is_number(value))
    }
    return TrainingMoment(
        row["step"], row.get("tokens", 0), row.get("flops", 0), seconds, terms, _read_pairs(row, config)
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)  # by type, since True is an int for isinstance


def _get_finite(value: float | None) -> float | None:
    """Return the value; None for NaN and infinity, which rows that were changed by hand may hold."""
    return value if value is not None and math.isfinite(value) else None


def _read_pairs(row: dict[str, Any], config: RunConfig) -> tuple[tuple[float, ...], ...] | None:
    """Return pairs per token by layer and expert; None where the row does not tell them, or not of this model."""
    moe, num_layers = config.model.moe, len(config.model.moe_layers)
    if moe is None:
        return None
    shares_ZE: Any = row.get(_SHARES)
    average = row.get("experts_per_token")
    pairs_Z: Any = row.get(_PAIRS, [average] * num_layers)
    shape = [len(moe.routed_widths)] * num_layers
    if not _is_table(shares_ZE, shape) or not _is_table([pairs_Z], [num_layers]):
        return None
    # Pairs are whole: rounded they are exact but for steps of about a million pairs a layer and more.
    num_tokens = config.data.batch_tokens
    return tuple(
        tuple(round(share * pairs * num_tokens) / num_tokens for share in share_E)
        for share_E, pairs in zip(shares_ZE, pairs_Z, strict=True)
    )


def _is_table(rows: Any, lengths: list[int]) -> bool:
    """Return whether a value is a list of lists of numbers, of these lengths."""
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        return False
    return [len(row) for row in rows] == lengths and all(
        map(_is_number, (value for row in rows for value in row))
    )


def _list_notes(rows: list[dict[str, Any]], moments: list[TrainingMoment]) -> list[str]:
    notes = []
    unknown = sum(moment.pairs_per_token_ZE is None for moment in moments)
    if unknown:
        notes.append(
            f"{unknown} of {len(rows)} rows do not tell which experts served tokens, and have no widths"
        )
    old = sum(
        _PAIRS not in row and moment.pairs_per_token_ZE is not None
        for row, moment in zip(rows, moments, strict=True)
    )
    if old:
        notes.append(
            f"{old} of {len(rows)} rows are of an earlier version, which did not tell the experts per token of each "
            "layer: the mean over layers stands for each"
        )
    return notes


def _sum_by_width(config: RunConfig, moment: TrainingMoment) -> list[dict[int, float]]:
    """Return for each MoE layer the pairs per token of all experts of a width; [] where they are not known."""
    if config.model.moe is None or moment.pairs_per_token_ZE is None:
        return []
    widths = config.model.moe.routed_widths
    layers = []
    for pairs_E in moment.pairs_per_token_ZE:
        by_width = dict.fromkeys(sorted(set(widths)), 0.0)
        for width, pairs in zip(widths, pairs_E, strict=True):
            by_width[width] += pairs
        layers.append(by_width)
    return layers


def _list_widths(config: RunConfig, layers: list[dict[int, float]]) -> list[dict[str, Any]]:
    """Return a row for each width, over all MoE layers."""
    widths = config.model.moe.routed_widths if config.model.moe else ()
    pairs = {width: math.fsum(layer[width] for layer in layers) for width in layers[0]}
    shares = _share_widths(pairs)
    return [
        {
            "width": width,
            "num_experts": widths.count(width),
            "activated_parameters": 3 * config.model.dim * width * pairs[width],
            **shares[width],
        }
        for width in pairs
    ]


def _share_widths(pairs: dict[int, float]) -> dict[int, dict[str, float | None]]:
    """Return the shares of pairs, and of the hidden units that these activated, by width."""
    all_pairs = math.fsum(pairs.values())
    all_units = math.fsum(width * count for width, count in pairs.items())
    return {
        width: {
            "token_share": count / all_pairs if all_pairs else None,
            "compute_share": width * count / all_units if all_units else None,
        }
        for width, count in pairs.items()
    }
