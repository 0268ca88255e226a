"""Experts that do the same: outputs and weights of every two experts of a layer, against two random experts.

Two experts are called redundant if one could stand for the other:

    output_cosine > 0.9, or
    cka > 0.9 and cka > cka_null, and weight_cosine more than half way from weight_cosine_null to 1.

CKA alone does not count: for random experts it grows with their width, and with fewer tokens, as wide ones all keep the
distances between inputs (0.6 for 2,048 units and 60 tokens of a model of width 64). Weights of random experts are
far from half way: the deviation of a mean over their units is a few hundredths at most.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from hmoe.analyze.expert_inputs import LayerInputs, Windows, capture_expert_inputs
from hmoe.analyze.expert_outputs import MOST_NUMBERS, Experts, compare_outputs
from hmoe.analyze.random_experts import MATCHED_UNITS, RandomExperts, join_units
from hmoe.analyze.traced_text import Row
from hmoe.errors import ConfigError
from hmoe.model.transformer import Transformer
from hmoe.statistics.unit_matching import match_units

MATCHED_PAIRS = 150  # of a layer, whose weights are matched: those whose outputs are most alike
_ALIKE, _HALF_WAY = 0.9, 0.5
_MOST_PRODUCTS = 2**35  # of numbers, for the CKA of all pairs of a layer: some seconds


def measure_redundancy(
    model: Transformer,
    windows: Windows,
    report: Callable[[int, int], None] = lambda done, total: None,
    *,
    most_tokens: int = 4096,
    seed: int = 0,
) -> dict[str, list[Row]]:
    """Compare every two experts of each layer on the same inputs, and by their weights.

    Returns the table `redundancy`, a row for each layer and two experts with hidden units:

    - cka: linear CKA of their outputs for all tokens of the sample, whoever was chosen; cka_null: of two random experts
      of these widths on the same inputs, mean of a few, interpolated where a layer has many widths;
    - output_cosine: cosine of their outputs, mean over tokens; output_cosine_null: of the random experts;
    - output_distance: sliced Wasserstein distance between the outputs for the tokens that each of them served;
      null_output_distance: mean of a few draws in which experts are permuted among the layer's token-expert pairs: what
      the functions, and how few tokens are served, make of it;
    - weight_cosine: of hidden units (gate, up and down weights, 3 D numbers) under the best matching, mean over the
      narrower expert's; weight_cosine_null: of two random experts. None for all but the MATCHED_PAIRS pairs of a layer
      whose outputs are most alike;
    - is_redundant: see the module;
    - tokens: of the sample. Fewer than `most_tokens` where outputs of all experts would take too much memory or time.

    Args:
        model: any model with MoE layers.
        windows: token ids, and the documents that they are of.
        report: called with the steps that are done, and all.
        most_tokens: of the sample.
        seed: of random experts.

    Raises:
        ConfigError: for a dense model.
    """
    num_layers = len(model.config.moe_layers)
    if not num_layers:
        raise ConfigError("the model is dense and has no experts to look at")
    if not windows:
        return {"redundancy": []}
    captured = capture_expert_inputs(
        model, windows, min(most_tokens, _count_rows(model)), lambda done, total: report(0, num_layers)
    )
    randoms = RandomExperts(model.config.dim, 2 * model.config.layers, seed)
    rows: list[Row] = []
    for layer, inputs in enumerate(captured):
        block: Any = model.blocks[model.config.moe_layers[layer]]
        experts = [tuple(w.cpu() for w in block.ffn.expert(i)) for i in range(len(block.ffn.widths))]
        rows += _compare_layer(layer, experts, inputs, randoms)
        report(layer + 1, num_layers)
    return {"redundancy": rows}


def _compare_layer(layer: int, experts: Experts, inputs: LayerInputs, randoms: RandomExperts) -> list[Row]:
    widths = [len(w_gate) for w_gate, _, _ in experts]
    likeness = compare_outputs(experts, inputs, randoms)
    units = [functools.cache(functools.partial(join_units, expert)) for expert in experts]
    pairs = list(itertools.combinations(range(len(experts)), 2))
    alike = [np.nan_to_num(np.fmax(likeness.cka[pair], likeness.cosine[pair]), nan=-1.0) for pair in pairs]
    matched = set(np.argsort(-np.array(alike), kind="stable")[:MATCHED_PAIRS].tolist())
    rows = []
    for place, (a, b) in enumerate(pairs):
        is_matched = place in matched
        row = {
            "layer": layer,
            "expert_a": a,
            "expert_b": b,
            "width_a": widths[a],
            "width_b": widths[b],
            "cka": likeness.cka[a, b],
            "cka_null": likeness.cka_null[a, b],
            "output_cosine": likeness.cosine[a, b],
            "output_cosine_null": likeness.cosine_null[a, b],
            "output_distance": likeness.distance[a, b],
            "null_output_distance": likeness.distance_null[a, b],
            "weight_cosine": match_units(units[a](), units[b](), MATCHED_UNITS) if is_matched else None,
            "weight_cosine_null": randoms.get_cosine(widths[a], widths[b]) if is_matched else None,
            "tokens": len(inputs.x_TD),
        }
        plain = {name: _make_plain(value) for name, value in row.items()}
        rows.append({**plain, "is_redundant": _is_redundant(plain)})
    return rows


def _is_redundant(row: Row) -> bool:
    """Return whether one of two experts could stand for the other; the module says by which rule."""
    if row["output_cosine"] is not None and row["output_cosine"] > _ALIKE:
        return True
    if row["cka"] is None or row["weight_cosine"] is None:
        return False
    is_alike = row["cka"] > max(_ALIKE, row["cka_null"] or 0.0)
    null = row["weight_cosine_null"]
    return bool(is_alike and row["weight_cosine"] > null + _HALF_WAY * (1 - null))


def _count_rows(model: Transformer) -> int:
    """Return for how many tokens outputs of all experts of a layer fit into memory, and their CKA into some seconds."""
    assert model.config.moe is not None
    numbers = len(model.config.moe.expert_widths) * model.config.dim  # of a token
    # Products of rows are numbers x rows^2, those of columns numbers^2 x rows / 2; the cheaper ones are taken.
    by_products = max(int((_MOST_PRODUCTS / numbers) ** 0.5), 2 * _MOST_PRODUCTS // numbers**2)
    return max(1, min(MOST_NUMBERS // numbers, by_products))


def _make_plain(value: Any) -> Any:
    """Return a plain number, None for NaN."""
    if value is None or isinstance(value, int):
        return value
    return float(value) if np.isfinite(value) else None
