"""How alike the experts are in what they read, and whether experts near in size are near in it."""

from collections.abc import Iterable, Sequence
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
LEVEL = 0.05  # of a test


def measure_similarity(
    tally: Tally, embeddings: npt.NDArray[Any], num_draws: int = NUM_DRAWS, seed: int = 0
) -> dict[str, list[Row]]:
    """Return how far apart the token distributions of experts are: tables similarity, clusters and size_tests.

    Wasserstein-1 distances between p_e(v), pairs of expert e with token type v among all pairs of e, over three grounds:

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
    counts = np.concatenate([tally.pairs[:, :, seen], tally.pairs[:, :, seen].sum(0, keepdims=True)])
    points = np.asarray(embeddings[seen], dtype=np.float64)

    def list_lines() -> dict[str, Iterable[Line]]:
        return {
            "rank": [sort_positions(_scale_ranks(frequency[seen]))],
            "embedding": project_points(points, NUM_DIRECTIONS, seed),
            "token_id": [sort_positions(seen)],
        }

    distances = {name: measure_line_distances(counts, lines) for name, lines in list_lines().items()}
    nulls = [estimate_null_distances(table, list_lines(), num_draws, seed) for table in counts]
    layers = [*range(len(tally.blocks)), None]
    rows = [
        row
        for place, layer in enumerate(layers)
        for row in _list_pairs(
            layer, tally.widths, {name: d[place] for name, d in distances.items()}, nulls[place]
        )
    ]
    tests = [
        test
        for name in DISTANCES
        for test in measure_size_test(rows, name, null_key=f"null_{name}", seed=seed)
    ]
    return {"similarity": rows, "clusters": list_clusters(rows), "size_tests": tests}


def measure_size_test(
    rows: Sequence[Row], distance: str, key: str | None = None, null_key: str | None = None, seed: int = 0
) -> list[Row]:
    """Return the tests of "near in size, near in behaviour", by layer and (layer None) over all of them together.

    Mantel's test of |h_i - h_j| against a distance, one-sided for a positive association, over all orders of up to 8
    experts and 9,999 random ones of more; over all layers experts change places in all of them alike, and the
    correlation is the mean of the layers'. Experts without tokens are left out, and fewer than three experts, equal
    widths or equal distances have no test.

    Distances of experts with few tokens are large by chance. Where width decides how many tokens an expert gets, that
    alone makes distances go with differences in width, and Mantel's test, which takes experts for exchangeable, is
    then wrong in up to 7 of 10 random routings. So the test is repeated on what a distance has beyond its null
    (residuals of its regression on it), and experts are called near in size and behaviour where both agree.

    Args:
        rows: pairs of experts with `layer`, `expert_a`, `expert_b`, `width_a`, `width_b` and distances.
        distance: its name in the table.
        key: of the distance in the rows; None if it is its name.
        null_key: of its null in the rows; None if it has none, then the test stands alone.
        seed: of random orders.
    """
    layers = sorted({row["layer"] for row in rows if row["layer"] is not None})
    experts, widths = _list_experts(rows)
    distances = _fill_matrices(rows, layers, experts, key or distance)
    beyond = remove_expected(distances, _fill_matrices(rows, layers, experts, null_key)) if null_key else None
    tests = []
    for layer, own in [
        *((layer, [place]) for place, layer in enumerate(layers)),
        (None, [*range(len(layers))]),
    ]:
        test = run_mantel_test(widths, distances[own], seed)
        test_beyond = run_mantel_test(widths, beyond[own], seed) if beyond is not None else None
        num_compared = len(list_compared(distances[own]))
        # a distance that its null explains altogether leaves nothing to test, and so is no sign of anything
        tails = [t.tail if t else 1.0 for t in (test, *([test_beyond] if null_key else []))]
        tests.append(
            {
                "layer": layer,
                "distance": distance,
                "correlation": test and test.correlation,
                "p": test and test.tail,
                "num_orders": test and test.num_orders,
                "correlation_beyond_null": test_beyond and test_beyond.correlation,
                "p_beyond_null": test_beyond and test_beyond.tail,
                "is_near_in_size": max(tails) <= LEVEL if test else None,
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
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

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
