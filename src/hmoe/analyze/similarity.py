"""How alike the experts are in what they read, and whether experts near in size are near in it."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hmoe.analyze.tally import Tally
from hmoe.analyze.traced_text import Floats, Ints, Row
from hmoe.errors import ConfigError
from hmoe.statistics.mantel import list_compared, remove_expected, run_mantel_test
from hmoe.statistics.wasserstein import (
    Line,
    estimate_null_distances,
    measure_line_distances,
    project_points,
    sort_positions,
)

DISTANCES = ("rank", "embedding", "token_id")
NUM_DIRECTIONS, NUM_DRAWS = 64, 200


def measure_similarity(
    tally: Tally, embeddings: npt.NDArray[Any], num_draws: int = NUM_DRAWS, seed: int = 0
) -> dict[str, list[Row]]:
    """Return how far apart the token distributions of experts are: tables similarity, clusters and size_tests.

    Wasserstein-1 distances between p_e(v), pairs of expert e with token type v among all of e, over three grounds:

    - rank: place of the type by frequency in the text that was read, from 0 (most frequent; of equally frequent ones
      the lower id first) to 1 (the rarest that was seen);
    - embedding: input embeddings, sliced: mean over 64 fixed random directions;
    - token_id: the ids as they are, which mean little; for comparison with others alone.

    Each has its null beside it: the mean when experts are dealt out at random among the pairs of the layer. It is not
    zero, and it is larger for experts with few tokens. Rows of layer None have the pairs of all layers pooled, in
    which opposite layers cancel. Experts without tokens have no distances.

    Args:
        tally: of the text.
        embeddings: input embeddings, one row for each token type.
        num_draws: random tables for each null.
        seed: of directions and draws.
    """
    if len(embeddings) < tally.vocab:
        raise ConfigError(
            f"embeddings have {len(embeddings)} rows: must be {tally.vocab}, one for each token type",
            argument="embeddings",
        )
    frequency = tally.types_by_fold.sum(0)
    seen = np.flatnonzero((frequency > 0) | tally.pairs.any((0, 1)))
    points = np.asarray(embeddings[seen], dtype=np.float64)

    def list_lines() -> dict[str, Iterable[Line]]:
        return {
            "rank": [sort_positions(_scale_ranks(frequency[seen]))],
            "embedding": project_points(points, NUM_DIRECTIONS, seed),
            "token_id": [sort_positions(seen)],
        }

    rows: list[Row] = []
    for layer, counts in _iterate_counts(tally, seen):
        distances = {name: measure_line_distances(counts, lines) for name, lines in list_lines().items()}
        nulls = estimate_null_distances(counts, list_lines(), num_draws, seed)
        rows += _list_pairs(layer, tally.widths, distances, nulls)
    tests = [test for name in DISTANCES for test in measure_size_test(rows, name, seed)]
    return {"similarity": rows, "clusters": list_clusters(rows), "size_tests": tests}


def measure_size_test(rows: Sequence[Row], key: str, seed: int = 0) -> list[Row]:
    """Return the tests of "near in size, near in behaviour", by layer and (layer None) over all of them together.

    Mantel's test of |h_i - h_j| against a distance, one-sided for a positive association, over all orders of up to 8
    experts and 9,999 random ones of more (p_mantel). Over all layers the correlation is the mean of the layers', and
    experts change places in all of them alike. Experts without tokens are left out; fewer than three experts, equal
    widths or equal distances have no test.

    Distances of experts with few tokens are large by chance. Where width decides how many tokens an expert gets, that
    alone makes distances go with differences in width, and Mantel's test, for which experts are exchangeable, then
    finds what is not there in up to 7 of 10 random routings. So it is repeated on what distances have beyond their null
    (residuals of a regression on it, p_beyond_null), and p is the larger of both: small only where neither chance in
    how widths fell to experts nor random routing explains the distances. Without a null, p is Mantel's.

    Args:
        rows: pairs of experts with `layer`, `expert_a`, `expert_b`, `width_a`, `width_b` and distances.
        key: of the distance in the rows; the null has the key `null_` and this. In the table its name is without
            a `_distance` at the end.
        seed: of random orders.
    """
    layers = sorted({row["layer"] for row in rows if row["layer"] is not None})
    experts, widths = _list_experts(rows)
    distances = _fill_matrices(rows, layers, experts, key)
    has_null = any(f"null_{key}" in row for row in rows)
    beyond = (
        remove_expected(distances, _fill_matrices(rows, layers, experts, f"null_{key}")) if has_null else None
    )
    tests = []
    for layer, own in [
        *((layer, [place]) for place, layer in enumerate(layers)),
        (None, [*range(len(layers))]),
    ]:
        test = run_mantel_test(widths, distances[own], seed)
        test_beyond = run_mantel_test(widths, beyond[own], seed) if beyond is not None else test
        num_compared = len(list_compared(distances[own]))
        tests.append(
            {
                "layer": layer,
                "distance": key.removesuffix("_distance"),
                "correlation": test and test.correlation,
                # distances that their null explains altogether have nothing beyond it
                "p": test and max(test.tail, test_beyond.tail if test_beyond else 1.0),
                "num_orders": test and test.num_orders,
                "p_mantel": test and test.tail,
                "correlation_beyond_null": test_beyond.correlation if has_null and test_beyond else None,
                "p_beyond_null": test_beyond.tail if has_null and test_beyond else None,
                "num_experts": num_compared,
                "num_left_out": len(experts) - num_compared,
            }
        )
    return tests


def list_clusters(rows: Sequence[Row], key: str = "rank") -> list[Row]:
    """Return hierarchical clusterings by average linkage, each step a row.

    Leaves are experts that have distances, in the order of width (of equal ones the lower number first), numbered from
    0; the cluster of step s has the number leaves + s. `left_expert` and `right_expert` name the expert where a part is
    a leaf.

    Args:
        rows: pairs of experts as for `measure_size_test`.
        key: of the distance in the rows.
    """
    from scipy.cluster.hierarchy import linkage  # noqa: PLC0415 - optional extra
    from scipy.spatial.distance import squareform  # noqa: PLC0415

    experts, widths = _list_experts(rows)
    steps = []
    for layer in dict.fromkeys(row["layer"] for row in rows):
        matrix = _fill_matrices(rows, [layer], experts, key)
        known = list_compared(matrix)
        leaves = known[np.argsort(widths[known], kind="stable")]
        if not len(leaves):
            continue
        names = [experts[leaf] for leaf in leaves]
        tree = linkage(squareform(matrix[0][np.ix_(leaves, leaves)], checks=False), "average")
        for step, (left, right, height, size) in enumerate(tree.tolist()):
            parts = {"left": int(left), "right": int(right)}
            named = {f"{s}_expert": names[p] if p < len(names) else None for s, p in parts.items()}
            sizes = {"height": height, "size": int(size)}
            steps.append({"layer": layer, "distance": key, "step": step, **parts, **named, **sizes})
    return steps


def _scale_ranks(frequencies: Ints) -> Floats:
    """Return places by falling frequency, from 0 to 1; of equally frequent types the first is first."""
    ranks = np.empty(len(frequencies))
    ranks[np.argsort(-frequencies, kind="stable")] = np.arange(len(frequencies))
    return ranks / max(len(frequencies) - 1, 1)


def _iterate_counts(tally: Tally, types: Ints) -> Iterator[tuple[int | None, Ints]]:
    """Yield the pairs by expert and type of each layer, then (layer None) of all together; never all at once."""
    total = np.zeros((len(tally.widths), len(types)), np.int64)
    for layer, pairs in enumerate(tally.pairs):
        counts = pairs[:, types].astype(np.int64)
        total += counts
        yield layer, counts
    yield None, total


def _list_pairs(
    layer: int | None, widths: Sequence[int], distances: dict[str, Floats], nulls: dict[str, Floats]
) -> list[Row]:
    """Return the rows of a layer, the experts of a pair in the order of their numbers."""
    values = {**distances, **{f"null_{name}": null for name, null in nulls.items()}}
    return [
        {
            "layer": layer,
            "expert_a": a,
            "expert_b": b,
            "width_a": int(widths[a]),
            "width_b": int(widths[b]),
            **{name: None if np.isnan(table[a, b]) else float(table[a, b]) for name, table in values.items()},
        }
        for a in range(len(widths))
        for b in range(a + 1, len(widths))
    ]


def _list_experts(rows: Sequence[Row]) -> tuple[list[int], Floats]:
    """Return the experts that rows tell of, and their widths."""
    widths = {row[f"expert_{end}"]: row[f"width_{end}"] for row in rows for end in "ab"}
    experts = sorted(widths)
    return experts, np.array([widths[expert] for expert in experts], dtype=np.float64)


def _fill_matrices(rows: Sequence[Row], layers: Sequence[int | None], experts: list[int], key: str) -> Floats:
    """Return a value of the rows as symmetric matrices (layers, experts, experts), NaN where there is none."""
    places = {expert: place for place, expert in enumerate(experts)}
    depths = {layer: depth for depth, layer in enumerate(layers)}
    matrices = np.full((len(layers), len(experts), len(experts)), np.nan)
    for row in rows:
        if row["layer"] in depths and row[key] is not None:
            a, b = places[row["expert_a"]], places[row["expert_b"]]
            matrices[depths[row["layer"]], a, b] = matrices[depths[row["layer"]], b, a] = row[key]
    return matrices
