import numpy as np
import pytest
import torch

from hmoe.analyze import redundancy as module
from hmoe.analyze.expert_inputs import capture_expert_inputs
from hmoe.analyze.planted_models import build_planted_model, plant_windows
from hmoe.analyze.redundancy import measure_redundancy
from hmoe.statistics.linear_cka import compute_linear_cka
from hmoe.statistics.wasserstein import measure_sliced_distance
from tests import oracles


def _measure(planted, seed=0, **options):
    return measure_redundancy(planted.model, plant_windows(planted, seed), **options)["redundancy"]


def _flagged(rows):
    return [(row["layer"], row["expert_a"], row["expert_b"]) for row in rows if row["is_redundant"]]


@pytest.mark.parametrize("seed", range(3))
def test_twins_and_only_they_are_redundant(seed):
    planted = build_planted_model("twins", seed)
    rows = _measure(planted)
    assert len(rows) == 20
    assert _flagged(rows) == [(1, *planted.truth["experts"])]
    [twins] = [row for row in rows if row["is_redundant"]]
    for name in ("cka", "output_cosine", "weight_cosine"):
        assert twins[name] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("noise", [0.1, 0.2])
def test_copies_that_went_apart_a_little_are_found(noise):
    planted = build_planted_model("twins", 0)
    first, second = planted.truth["experts"]
    for weight in planted.model.blocks[1].ffn.expert(second):
        weight.add_(noise * weight.std() * torch.randn_like(weight))
    assert _flagged(_measure(planted)) == [(1, first, second)]


def test_copies_with_turned_outputs_are_found_by_their_weights():
    planted = build_planted_model("twins", 0)
    first, second = planted.truth["experts"]
    angle = torch.tensor(0.6)
    turn = torch.block_diag(*[torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])] * 32)
    w_down = planted.model.blocks[1].ffn.expert(second)[2]
    w_down.copy_(turn @ w_down)
    rows = _measure(planted)
    assert _flagged(rows) == [(1, first, second)]
    [twins] = [row for row in rows if row["is_redundant"]]
    assert twins["output_cosine"] < 0.85
    assert twins["cka"] > 0.99


def _count_null_pairs(seeds, **options):
    num_pairs = 0
    for seed in seeds:
        rows = _measure(build_planted_model("noise", seed), seed, **options)
        assert _flagged(rows) == []
        num_pairs += len(rows)
    return num_pairs


def test_random_experts_are_not_redundant():
    assert _count_null_pairs(range(10), most_tokens=200) == 200


@pytest.mark.slow
def test_random_experts_of_200_models_are_not_redundant():
    assert _count_null_pairs(range(200)) == 4000


def test_wide_random_experts_are_alike_in_outputs_only():
    # All of them keep the distances between inputs, so that CKA is high by chance.
    planted = build_planted_model("noise", 0, {"widths": [2048, 2048], "router": {"name": "top_k", "k": 1}})
    rows = _measure(planted, most_tokens=60)
    assert all(row["cka"] > 0.5 for row in rows)
    assert _flagged(rows) == []
    assert all(row["cka"] == pytest.approx(row["cka_null"], abs=0.1) for row in rows)


def test_numbers_equal_slow_loops():
    planted = build_planted_model("twins", 1)
    windows = plant_windows(planted, 0, 4)
    rows = measure_redundancy(planted.model, windows)["redundancy"]
    inputs = capture_expert_inputs(planted.model, windows)
    for row in rows[::3]:
        layer, pair = row["layer"], (row["expert_a"], row["expert_b"])
        x_TD, chosen_TE = inputs[layer].x_TD, inputs[layer].chosen_TE
        weights = [planted.model.blocks[layer].ffn.expert(i) for i in pair]
        a, b = (torch.stack([oracles.expert(x_D, w) for x_D in x_TD]).double() for w in weights)
        assert row["tokens"] == len(x_TD) == 124
        assert row["cka"] == pytest.approx(compute_linear_cka(a.numpy(), b.numpy()), rel=1e-4)
        assert row["output_cosine"] == pytest.approx(float(torch.cosine_similarity(a, b).mean()), abs=1e-5)
        served = [y[chosen_TE[:, i]].numpy() for y, i in zip((a, b), pair, strict=True)]
        assert row["output_distance"] == pytest.approx(measure_sliced_distance(*served), rel=1e-3)
        assert (row["width_a"], row["width_b"]) == tuple(len(w[0]) for w in weights)


def test_dead_and_zero_experts_and_small_samples():
    planted = build_planted_model("dead", 0, {"zero": {"null": 1, "copy": 1}})
    rows = _measure(planted)
    assert max(row["expert_b"] for row in rows) == 4
    dead = [
        row
        for row in rows
        if row["layer"] == 1 and planted.truth["expert"] in (row["expert_a"], row["expert_b"])
    ]
    assert len(dead) == 4
    assert all(row["output_distance"] is None and row["cka"] is not None for row in dead)
    with torch.no_grad():
        planted.model.blocks[0].ffn.expert(0)[2].zero_()
    silent = [row for row in _measure(planted) if row["layer"] == 0 and row["expert_a"] == 0]
    assert all(row["cka"] is None and row["output_cosine"] is None for row in silent)
    one = measure_redundancy(planted.model, [(np.array([3]), np.array([0]))])["redundancy"]
    assert {row["tokens"] for row in one} == {1}
    assert all(row["cka"] is None and not row["is_redundant"] for row in one)
    assert measure_redundancy(planted.model, [])["redundancy"] == []
    single = build_planted_model("noise", 0, {"widths": [8], "router": {"name": "top_k", "k": 1}})
    assert _measure(single) == []


def test_weights_are_matched_where_outputs_are_most_alike(monkeypatch):
    monkeypatch.setattr(module, "MATCHED_PAIRS", 2)
    planted = build_planted_model("twins", 0)
    calls = []
    rows = measure_redundancy(planted.model, plant_windows(planted, 0), lambda *counts: calls.append(counts))
    assert sum(row["weight_cosine"] is not None for row in rows["redundancy"]) == 4
    assert _flagged(rows["redundancy"]) == [(1, *planted.truth["experts"])]
    assert calls == [(0, 2), (1, 2), (2, 2)]
