"""Experts that do the same: outputs and weights of every two experts of a layer, against two random experts.

Two experts are called redundant if one could stand for the other:

    output_cosine > 0.9, or
    cka > 0.9 and cka > cka_null, and weight_cosine more than half way from weight_cosine_null to 1.

Alike outputs by CKA alone do not count: random experts that are wide reach that too, because all of them keep the
distances between inputs. Weights of random experts are far from half way: the deviation of a mean over their units is
a few hundredths at most.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hmoe.analyze.expert_inputs import LayerInputs, Windows, capture_expert_inputs, run_expert
from hmoe.analyze.traced_text import Floats, Row
from hmoe.model.transformer import Transformer
from hmoe.statistics.linear_cka import compare_representations
from hmoe.statistics.unit_matching import match_units
from hmoe.statistics.wasserstein import measure_line_distances, project_points

MATCHED_PAIRS = 300  # of a layer, whose weights are matched: those whose outputs are most alike
MATCHED_UNITS = 512  # of the narrower expert
_ALIKE, _HALF_WAY = 0.9, 0.5
_NULL_DRAWS = 3
_MOST_NUMBERS = 2**26  # of outputs, and of products of rows, that are held at one time

Experts = Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class _OutputTables:
    """Of every two experts (E, E), NaN where there is none."""

    cka: Floats
    cka_null: Floats
    cosine: Floats
    distance: Floats


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
      of these widths on the same inputs, mean of a few;
    - output_cosine: cosine of their outputs, mean over tokens;
    - output_distance: sliced Wasserstein distance between the outputs for the tokens that each of them served;
    - weight_cosine: of hidden units (gate, up and down weights, 3 D numbers) under the best matching, mean over the
      narrower expert's; weight_cosine_null: of two random experts. None for all but the MATCHED_PAIRS pairs of a layer
      whose outputs are most alike;
    - is_redundant: see the module;
    - tokens: of the sample. Fewer than `most_tokens` where outputs of all experts would not fit into memory.

    Args:
        model: any model with MoE layers.
        windows: token ids, and the documents that they are of.
        report: called with the steps that are done, and all.
        most_tokens: of the sample.
        seed: of random experts.
    """
    num_layers = len(model.config.moe_layers)
    if not windows:
        return {"redundancy": []}
    captured = capture_expert_inputs(
        model, windows, min(most_tokens, _count_rows(model)), lambda done, total: report(0, num_layers)
    )
    nulls = _WeightNulls(model.config.dim, 2 * model.config.layers, seed)
    rows: list[Row] = []
    for layer, inputs in enumerate(captured):
        block: Any = model.blocks[model.config.moe_layers[layer]]
        experts = [tuple(w.cpu() for w in block.ffn.expert(i)) for i in range(len(block.ffn.widths))]
        rows += _compare_layer(layer, experts, inputs, nulls)
        report(layer + 1, num_layers)
    return {"redundancy": rows}


def _compare_layer(layer: int, experts: Experts, inputs: LayerInputs, nulls: "_WeightNulls") -> list[Row]:
    widths = [len(w_gate) for w_gate, _, _ in experts]
    tables = _compare_outputs(experts, inputs, nulls)
    units = [functools.cache(functools.partial(_join_units, expert)) for expert in experts]
    pairs = list(itertools.combinations(range(len(experts)), 2))
    likeness = [np.nan_to_num(np.fmax(tables.cka[pair], tables.cosine[pair]), nan=-1.0) for pair in pairs]
    matched = set(np.argsort(-np.array(likeness), kind="stable")[:MATCHED_PAIRS].tolist())
    rows = []
    for place, (a, b) in enumerate(pairs):
        is_matched = place in matched
        row = {
            "layer": layer,
            "expert_a": a,
            "expert_b": b,
            "width_a": widths[a],
            "width_b": widths[b],
            "cka": tables.cka[a, b],
            "cka_null": tables.cka_null[a, b],
            "output_cosine": tables.cosine[a, b],
            "output_distance": tables.distance[a, b],
            "weight_cosine": match_units(units[a](), units[b](), MATCHED_UNITS) if is_matched else None,
            "weight_cosine_null": nulls.get_cosine(widths[a], widths[b]) if is_matched else None,
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


def _compare_outputs(experts: Experts, inputs: LayerInputs, nulls: "_WeightNulls") -> _OutputTables:
    x_TD = inputs.x_TD
    outputs = [run_expert(expert, x_TD).float().numpy() for expert in experts]
    return _OutputTables(
        cka=compare_representations(_widen(outputs)),
        cka_null=_average_null_ckas([len(expert[0]) for expert in experts], x_TD.float(), nulls),
        cosine=_average_cosines(outputs),
        distance=_measure_output_distances(outputs, inputs.chosen_TE.numpy()),
    )


def _average_cosines(outputs: Sequence[Any]) -> Floats:
    """Return cosines of two experts' outputs, averaged over the tokens for which both are not zero."""
    size = len(outputs)
    norms = [np.linalg.norm(y_TD, axis=1) for y_TD in outputs]
    cosines = np.full((size, size), np.nan)
    for a, b in itertools.combinations(range(size), 2):
        scale_T = norms[a] * norms[b]
        known_T = scale_T > 0
        if known_T.any():
            products_T = np.einsum("td,td->t", outputs[a], outputs[b])
            cosine_T = products_T[known_T] / scale_T[known_T]
            cosines[a, b] = cosines[b, a] = cosine_T.mean(dtype=np.float64)
    return cosines


def _measure_output_distances(outputs: Sequence[Any], chosen_TE: Any) -> Floats:
    """Return sliced distances between the outputs for the tokens that each expert served."""
    served = [np.flatnonzero(chosen_TE[:, expert]) for expert in range(len(outputs))]
    points = np.concatenate([y_TD[tokens] for y_TD, tokens in zip(outputs, served, strict=True)])
    if not len(points):
        return np.full((len(outputs), len(outputs)), np.nan)
    weights = np.zeros((len(outputs), len(points)))
    weights[
        np.repeat(np.arange(len(outputs)), [len(tokens) for tokens in served]), np.arange(len(points))
    ] = 1
    return measure_line_distances(weights, project_points(points))


def _average_null_ckas(widths: Sequence[int], x_TD: torch.Tensor, nulls: "_WeightNulls") -> Floats:
    """Return the mean CKA of two random experts of each two widths on these inputs."""
    kinds = sorted(set(widths))
    total = np.zeros((len(kinds), len(kinds)))
    for _ in range(_NULL_DRAWS):
        # Two of each width, because two experts may have the same one.
        drawn = [run_expert(nulls.draw_expert(width), x_TD).numpy() for width in kinds * 2]
        ckas = compare_representations(_widen(drawn))[: len(kinds), len(kinds) :]
        total += (ckas + ckas.T) / 2 / _NULL_DRAWS
    places = [kinds.index(width) for width in widths]
    return total[np.ix_(places, places)]


class _WeightNulls:
    """Random experts, drawn as a model's weights are before training, and how alike they are."""

    def __init__(self, dim: int, num_terms: int, seed: int) -> None:
        self._dim, self._num_terms = dim, num_terms
        self._generator = torch.Generator().manual_seed(seed)
        self._cosines: dict[tuple[int, int], float] = {}

    def draw_expert(self, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return w_gate (h, D), w_up (h, D), w_down (D, h)."""
        w_gate, w_up, w_down = (
            torch.randn(width, self._dim, generator=self._generator) * scale
            for scale in (self._dim**-0.5, self._dim**-0.5, (width * self._num_terms) ** -0.5)
        )
        return w_gate, w_up, w_down.T

    def get_cosine(self, width_a: int, width_b: int) -> float:
        """Return the mean cosine of matched hidden units of two random experts."""
        key = (min(width_a, width_b), max(width_a, width_b))
        if key not in self._cosines:
            units = [[_join_units(self.draw_expert(width)) for width in key] for _ in range(_NULL_DRAWS)]
            draws = [match_units(first, second, MATCHED_UNITS) for first, second in units]
            self._cosines[key] = sum(draws) / len(draws)
        return self._cosines[key]


def _join_units(expert: Sequence[torch.Tensor]) -> Any:
    """Return the hidden units of an expert (h, 3 D)."""
    w_gate, w_up, w_down = expert
    return torch.cat([w_gate, w_up, w_down.T], dim=1).float().numpy()


def _count_rows(model: Transformer) -> int:
    """Return for how many tokens the outputs of all experts of a layer, and what CKA makes of them, fit into memory."""
    assert model.config.moe is not None
    num_experts, dim = len(model.config.moe.expert_widths), model.config.dim
    rows = _MOST_NUMBERS // (num_experts * dim)
    by_products = int((_MOST_NUMBERS // num_experts) ** 0.5)
    return max(1, min(rows, by_products) if by_products <= dim else rows)


def _widen(outputs: Sequence[Any]) -> list[Any]:
    """Return small outputs in double precision."""
    is_small = sum(y_TD.size for y_TD in outputs) <= _MOST_NUMBERS // 4
    return [y_TD.astype(np.float64) if is_small else y_TD for y_TD in outputs]


def _make_plain(value: Any) -> Any:
    """Return a plain number, None for NaN."""
    if value is None or isinstance(value, int):
        return value
    return float(value) if np.isfinite(value) else None
