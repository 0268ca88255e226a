"""Similarity of experts: distances by hand, planted sizes are found, random routings are left alone."""

import numpy as np
import pytest

from hmoe.analyze.planted import plant_routing
from hmoe.analyze.similarity import measure_similarity, measure_size_test
from hmoe.analyze.tally import Tally
from hmoe.errors import ConfigError

stats = pytest.importorskip("scipy.stats")
hierarchy = pytest.importorskip("scipy.cluster.hierarchy")


def tally_counts(counts, widths):
    """A tally of so many pairs (layers, experts, types), each token with one expert."""
    counts = np.asarray(counts)
    tally = Tally(tuple(widths), tuple(range(len(counts))), counts.shape[2], {})
    tally.pairs += counts
    tally.types_by_fold[0] = counts[0].sum(0)
    return tally


def draw_embeddings(vocab, seed=0):
    return np.random.default_rng(seed).normal(size=(vocab, 4)).astype(np.float32)


def tally_planted(structure, seed, **sizes):
    planted = plant_routing(structure, seed, **sizes)
    tally = Tally(planted.text.trace.widths, planted.text.trace.blocks, len(planted.texts), planted.labels)
    tally.update(planted.text)
    tally.finish()
    return tally


def select_test(tables, distance="rank", layer=None):
    [test] = [t for t in tables["size_tests"] if t["distance"] == distance and t["layer"] == layer]
    return test


def test_distances_are_those_of_scipy_over_each_ground():
    counts = np.random.default_rng(0).poisson(1.5, (2, 3, 12))
    counts[:, :, [2, 7]] = 0  # types never seen
    counts[:, 1] = 0
    tally, embeddings = tally_counts(counts, (64, 32, 96)), draw_embeddings(12)
    rows = measure_similarity(tally, embeddings)["similarity"]
    assert [(r["layer"], r["expert_a"], r["expert_b"]) for r in rows[:4]] == [
        (0, 0, 1),
        (0, 0, 2),
        (0, 1, 2),
        (1, 0, 1),
    ]
    frequency = counts[0].sum(0)
    seen = sorted(np.flatnonzero(counts.any((0, 1))), key=lambda v: (-frequency[v], v))
    directions = np.random.default_rng(0).standard_normal((64, 4))
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    for row in rows:
        own = (counts.sum(0) if row["layer"] is None else counts[row["layer"]])[
            [row["expert_a"], row["expert_b"]]
        ]
        if 1 in (row["expert_a"], row["expert_b"]):
            assert all(
                row[key] is None for key in ("rank", "embedding", "token_id", "null_rank", "null_embedding")
            )
            continue
        places = np.arange(len(seen)) / (len(seen) - 1)
        assert row["rank"] == pytest.approx(stats.wasserstein_distance(places, places, *own[:, seen]))
        assert row["token_id"] == pytest.approx(stats.wasserstein_distance(range(12), range(12), *own))
        lines = [stats.wasserstein_distance(embeddings @ d, embeddings @ d, *own) for d in directions]
        assert row["embedding"] == pytest.approx(np.mean(lines))
        assert all(type(row[key]) is float for key in ("rank", "null_rank", "null_embedding"))
    assert {r["layer"] for r in rows} == {0, 1, None}


def test_planted_sizes_are_found():
    tables = measure_similarity(tally_planted("sizes", 0), draw_embeddings(120))
    for layer in (0, 1, None):
        test = select_test(tables, layer=layer)
        assert test["p"] < 0.01
        assert test["p"] == max(test["p_mantel"], test["p_beyond_null"])
        assert test["correlation"] > 0.7
        assert (test["num_orders"], test["num_experts"], test["num_left_out"]) == (40320, 8, 0)
    rows = [r for r in tables["similarity"] if r["layer"] == 0]
    assert np.mean([r["rank"] for r in rows]) > 3 * np.mean([r["null_rank"] for r in rows])


def test_twins_are_the_first_to_be_joined():
    planted = plant_routing("twins", 0, num_documents=80)
    tables = measure_similarity(tally_planted("twins", 0, num_documents=80), draw_embeddings(120))
    for layer in (0, 1):
        first = next(c for c in tables["clusters"] if c["layer"] == layer)
        assert sorted((first["left_expert"], first["right_expert"])) == planted.truth["experts"]


def test_leaves_are_in_the_order_of_width():
    counts = np.random.default_rng(0).poisson(3, (1, 5, 20))
    counts[0, 3] = 0
    widths = (96, 32, 64, 16, 32)
    tables = measure_similarity(tally_counts(counts, widths), draw_embeddings(20))
    leaves = [1, 4, 2, 0]
    distance = {(r["expert_a"], r["expert_b"]): r["rank"] for r in tables["similarity"] if r["layer"] == 0}
    condensed = [distance[tuple(sorted((leaves[i], leaves[j])))] for i in range(4) for j in range(i + 1, 4)]
    expected = hierarchy.linkage(condensed, "average")
    own = [c for c in tables["clusters"] if c["layer"] == 0]
    steps = [[c[key] for key in ("left", "right", "height", "size")] for c in own]
    np.testing.assert_allclose(steps, expected)
    for cluster in own:
        for side in ("left", "right"):
            leaf = cluster[side]
            assert cluster[f"{side}_expert"] == (leaves[leaf] if leaf < 4 else None)


@pytest.mark.parametrize(
    ("power", "repeats"),
    [(2, 40), *(pytest.param(power, 200, marks=pytest.mark.slow) for power in (-1, 0, 1, 2))],
)
def test_random_routing_is_left_alone_though_width_decides_how_many_tokens(power, repeats):
    generator = np.random.default_rng(power + 1)
    widths = np.array([1, 2, 4, 8, 16])
    share = widths ** float(-power)
    types = 1 / np.arange(1, 41)
    tails = []
    for _ in range(repeats):
        tally = tally_counts(generator.poisson(4000 * np.outer(share / share.sum(), types))[None], widths)
        tables = measure_similarity(tally, draw_embeddings(40)[:, :1], num_draws=20)
        tails.append([select_test(tables)[key] for key in ("p", "p_mantel")])
    p, p_mantel = np.mean(np.array(tails) <= 0.05, axis=0)
    assert p <= stats.binom.ppf(0.995, repeats, 0.05) / repeats
    if power == 2:
        assert p_mantel > 0.15  # which is why it does not stand alone


def test_one_expert_one_token_and_equal_widths_have_no_test():
    single = measure_similarity(tally_counts([[[1, 0, 0]]], (64,)), draw_embeddings(3))
    assert single["similarity"] == single["clusters"] == []
    token = measure_similarity(tally_counts([[[1, 0], [0, 0], [0, 0]]], (0, 32, 64)), draw_embeddings(2))
    assert all(r["rank"] is None for r in token["similarity"])
    assert token["clusters"] == []
    counts = np.random.default_rng(0).poisson(3, (2, 4, 9))
    equal = measure_similarity(tally_counts(counts, (64,) * 4), draw_embeddings(9))
    for tables in (single, token, equal):
        assert all(t["p"] is t["correlation"] is t["num_orders"] is None for t in tables["size_tests"])
    counts[0, 2] = 0
    left = measure_similarity(tally_counts(counts, (0, 32, 64, 96)), draw_embeddings(9))
    assert [select_test(left, layer=z)["num_left_out"] for z in (0, 1, None)] == [1, 0, 0]
    assert select_test(left, layer=0)["num_orders"] == 6


def test_any_distance_can_be_tested():
    rows = [
        {"layer": z, "expert_a": a, "expert_b": b, "width_a": 8 * a, "width_b": 8 * b, "output_distance": 0.1 * (b - a)}
        for z in range(2) for a in range(6) for b in range(a + 1, 6)
    ]  # fmt: skip
    tests = measure_size_test(rows, "output_distance")
    assert [t["layer"] for t in tests] == [0, 1, None]
    assert all(t["distance"] == "output" and t["p"] == t["p_mantel"] == 2 / 720 for t in tests)
    assert all(t["correlation"] == pytest.approx(1) and t["p_beyond_null"] is None for t in tests)


def test_embeddings_must_have_a_row_for_each_type():
    with pytest.raises(ConfigError, match="embeddings have 3 rows: must be 4"):
        measure_similarity(tally_counts(np.ones((1, 2, 4), int), (32, 64)), draw_embeddings(3))
