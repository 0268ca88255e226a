"""What experts have to do with domains and kinds of tokens: mutual information, and profiles of experts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hmoe.analyze.activation import clean_number
from hmoe.analyze.labellings import DOMAIN, Labelling, list_labellings
from hmoe.analyze.profiles import list_profiles
from hmoe.analyze.tally import Table, Tally
from hmoe.analyze.traced_text import Floats, Row
from hmoe.errors import ConfigError
from hmoe.statistics.grouped_tables import (
    FEWEST_ARRANGEMENTS,
    compute_draw_tail,
    compute_flip_statistics,
    count_label_arrangements,
    draw_independent_information,
    draw_shuffled_information,
)
from hmoe.statistics.information import compute_mutual_information
from hmoe.statistics.jackknife import estimate_jackknife_interval


@dataclass(frozen=True)
class _Null:
    """What chance gives: bits of each draw and layer (draws, Z), or None, and p by layer and of all layers."""

    bits: Floats | None
    tails: list[float | None]


def measure_specialisation(
    tally: Tally, class_names: Mapping[str, Sequence[str]], num_draws: int = 200, seed: int = 0
) -> dict[str, list[Row]]:
    """Return the tables `specialisation` and `profiles`: what experts have to do with domains and kinds of tokens.

    `specialisation` has the mutual information of class and expert over token-expert pairs, in bits, with Miller and
    Madow's correction (also below 0), its jackknife interval over folds of documents, and what chance gives (mean and
    95th percentile of the draws); layer None is the mean over layers.

    - Domains: chance is a shuffle of domains over groups of documents, up to F for each domain, and p the share of
      shuffles that tell as much. There is none with one domain, or with so few documents that it could not reach 5%.
    - Labellings of token types, without tokens that have no class: chance is experts permuted among pairs. That
      takes the tokens of a document as independent, so p is the larger of the share of these draws and of a test
      that keeps all dependence within folds of documents (`compute_flip_statistics`); so p can be large where the
      bits are above `null_high`. Fewer than six folds with tokens give no p.

    `profiles`: `list_profiles`.

    Args:
        tally: of the tokens read.
        class_names: names of the classes of each labelling of the tally.
        num_draws: of each null.
        seed: of the draws.

    Raises:
        ConfigError: if a labelling has no names, or too few, or `num_draws` is below 1.
    """
    if num_draws < 1:
        raise ConfigError(f"num_draws = {num_draws}: must be at least 1")
    generator = np.random.default_rng(seed)
    specialisation: list[Row] = []
    profiles: list[Row] = []
    for labelling in list_labellings(tally, class_names):
        is_domain = labelling.name == DOMAIN
        null = (_shuffle_domains if is_domain else _permute_experts)(labelling, num_draws, generator)
        specialisation += _list_information(labelling, null)
        profiles += list_profiles(tally, labelling)
    return {"specialisation": specialisation, "profiles": profiles}


def _shuffle_domains(labelling: Labelling, num_draws: int, generator: np.random.Generator) -> _Null:
    """Return the null of domains that have nothing to do with documents."""
    num_layers = labelling.pairs.shape[2]
    fold, domain = np.nonzero(labelling.tokens)
    if len(np.unique(domain)) < 2:
        return _Null(None, [None] * (num_layers + 1))
    bits = draw_shuffled_information(labelling.pairs[fold, domain], domain, num_draws, generator)
    if count_label_arrangements(np.bincount(domain).tolist()) < FEWEST_ARRANGEMENTS:
        return _Null(bits, [None] * (num_layers + 1))
    return _Null(bits, _compute_tails(_compute_bits(labelling.pairs.sum(0)), bits))


def _permute_experts(labelling: Labelling, num_draws: int, generator: np.random.Generator) -> _Null:
    """Return the null of experts that have nothing to do with classes; p holds for documents as units."""
    pairs = labelling.pairs
    layers = [
        draw_independent_information(table, num_draws, generator) for table in pairs.sum(0).transpose(1, 0, 2)
    ]
    bits = np.stack(layers, 1)
    used = labelling.tokens.any(1)
    is_single = len(np.flatnonzero(labelling.tokens.sum(0))) < 2
    if is_single or 2.0 ** (used.sum() - 1) < FEWEST_ARRANGEMENTS:
        return _Null(None if is_single else bits, [None] * (pairs.shape[2] + 1))
    tails = _compute_tails(_compute_bits(pairs.sum(0)), bits)
    by_fold = compute_flip_statistics(pairs[used].transpose(0, 2, 1, 3), num_draws, generator)
    larger = [
        None if tail is None or other is None else max(tail, other)
        for tail, other in zip(tails, _compute_tails(*by_fold), strict=True)
    ]
    return _Null(bits, larger)


def _compute_tails(seen: Floats, draws: Floats) -> list[float | None]:
    """Return p of each layer and of their mean."""
    known = np.isfinite(seen)
    tails = [compute_draw_tail(seen[i], draws[:, i]) if known[i] else None for i in range(len(seen))]
    return [*tails, compute_draw_tail(seen[known].mean(), draws[:, known].mean(1)) if known.any() else None]


def _compute_bits(pairs: Table) -> Floats:
    """Return mutual information of class and expert in each layer, of pairs (classes, Z, E)."""
    return compute_mutual_information(pairs.transpose(1, 0, 2))


def _list_information(labelling: Labelling, null: _Null) -> list[Row]:
    """Return a row for each layer, and of their mean."""

    def compute_all(pairs: Table) -> Floats:
        bits = _compute_bits(pairs)
        known = bits[np.isfinite(bits)]
        return np.append(bits, known.mean() if len(known) else np.nan)

    interval = estimate_jackknife_interval(compute_all, [labelling.pairs])
    draws = None if null.bits is None else np.column_stack([null.bits, _average_known(null.bits)])
    num_layers = labelling.pairs.shape[2]
    return [
        {
            "layer": layer if layer < num_layers else None,
            "label": labelling.name,
            "bits": clean_number(interval.value[layer]),
            "low": clean_number(interval.low[layer]),
            "high": clean_number(interval.high[layer]),
            "null_mean": None if draws is None else clean_number(draws[:, layer].mean()),
            "null_high": None if draws is None else clean_number(np.quantile(draws[:, layer], 0.95)),
            "p": null.tails[layer],
        }
        for layer in range(num_layers + 1)
    ]


def _average_known(bits: Floats) -> Floats:
    """Return the mean of each draw over the layers in which pairs have classes; NaN without any."""
    known = np.isfinite(bits).all(0)
    return bits[:, known].mean(1) if known.any() else np.full(len(bits), np.nan)
