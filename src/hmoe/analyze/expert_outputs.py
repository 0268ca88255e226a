"""What the experts of a layer make of the same inputs: how alike the outputs of every two are, and of random ones."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hmoe.analyze.expert_inputs import LayerInputs, run_expert
from hmoe.analyze.random_experts import RandomExperts
from hmoe.analyze.traced_text import Floats, Ints
from hmoe.statistics.linear_cka import compare_representations
from hmoe.statistics.wasserstein import measure_line_distances, project_points

MOST_NUMBERS = 2**26  # of outputs that are held at one time
_NUM_DRAWS = 3
_NULL_WIDTHS = 12  # of which random experts are drawn for a layer; between them likenesses are interpolated

Experts = Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class OutputLikeness:
    """Of every two experts (E, E), NaN where there is none.

    Attributes:
        cka, cosine: for all tokens, whoever was chosen.
        cka_null, cosine_null: of two random experts of these widths.
        distance: between the outputs for the tokens that each served.
        distance_null: the same if these tokens are dealt out at random, as many to each expert.
    """

    cka: Floats
    cka_null: Floats
    cosine: Floats
    cosine_null: Floats
    distance: Floats
    distance_null: Floats


def compare_outputs(experts: Experts, inputs: LayerInputs, randoms: RandomExperts) -> OutputLikeness:
    """Return how alike the outputs of every two experts are."""
    x_TD = inputs.x_TD
    outputs = [run_expert(expert, x_TD).float().numpy() for expert in experts]
    cka_null, cosine_null = _average_nulls([len(expert[0]) for expert in experts], x_TD.float(), randoms)
    distance, distance_null = _measure_distances(outputs, inputs.chosen_TE.numpy(), randoms.rng)
    return OutputLikeness(
        compare_representations(_widen(outputs)),
        cka_null,
        _average_cosines(outputs),
        cosine_null,
        distance,
        distance_null,
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


def _measure_distances(
    outputs: Sequence[Any], chosen_TE: Any, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Return sliced distances between the outputs for the tokens that each expert served, and their null."""
    # Zero-computation experts stand last and give nothing.
    token_N, expert_N = np.nonzero(chosen_TE[:, : len(outputs)])
    draws = [_measure_dealt(outputs, token_N, rng.permutation(expert_N)) for _ in range(_NUM_DRAWS)]
    return _measure_dealt(outputs, token_N, expert_N), np.mean(draws, axis=0)


def _measure_dealt(outputs: Sequence[Any], token_N: Ints, expert_N: Ints) -> Floats:
    """Return sliced distances between experts' outputs for the tokens that they are given."""
    if not len(token_N):
        return np.full((len(outputs), len(outputs)), np.nan)
    points = np.stack([outputs[expert][token] for token, expert in zip(token_N, expert_N, strict=True)])
    weights = (expert_N == np.arange(len(outputs))[:, None]).astype(np.float64)
    return measure_line_distances(weights, project_points(points))


def _average_nulls(
    widths: Sequence[int], x_TD: torch.Tensor, randoms: RandomExperts
) -> tuple[Floats, Floats]:
    """Return the mean CKA and cosine of outputs of two random experts of each two widths, on these inputs."""
    kinds = sorted(set(widths))
    if len(kinds) > _NULL_WIDTHS:
        kinds = [kinds[place] for place in np.linspace(0, len(kinds) - 1, _NULL_WIDTHS).astype(int)]
    size = len(kinds)
    totals = np.zeros((2, size, size))
    for _ in range(_NUM_DRAWS):
        # Two of each width, because two experts may have the same one.
        drawn = [run_expert(randoms.draw_expert(width), x_TD).numpy() for width in kinds * 2]
        tables = np.stack([compare_representations(_widen(drawn)), _average_cosines(drawn)])
        between = tables[:, :size, size:]
        totals += (between + between.swapaxes(1, 2)) / 2 / _NUM_DRAWS
    cka, cosine = (_interpolate(table, kinds, widths) for table in totals)
    return cka, cosine


def _interpolate(table: Floats, kinds: Sequence[int], widths: Sequence[int]) -> Floats:
    by_column = np.array([np.interp(widths, kinds, row) for row in table])
    return np.array([np.interp(widths, kinds, column) for column in by_column.T])


def _widen(outputs: Sequence[Any]) -> list[Any]:
    """Return small outputs in double precision."""
    is_small = sum(y_TD.size for y_TD in outputs) <= MOST_NUMBERS // 4
    return [y_TD.astype(np.float64) if is_small else y_TD for y_TD in outputs]
