import numpy as np
import pytest
import torch
from scipy import stats

import hmoe
from hmoe.analyze.planted_models import PLANTED_WIDTHS, build_planted_model, plant_windows
from hmoe.analyze.worth import compare_losses, measure_worth
from hmoe.errors import ConfigError
from hmoe.model.transformer import build_transformer


def _by_cell(rows):
    return {(row["layer"], row["expert"]): row for row in rows}


def test_a_dead_expert_is_worth_nothing():
    planted = build_planted_model("dead", 0)
    row = _by_cell(measure_worth(planted.model, plant_windows(planted, 0))["worth"])[
        1, planted.truth["expert"]
    ]
    assert row["difference"] == 0
    assert row["compute_share"] == 0
    assert [row[name] for name in ("low", "high", "p", "per_compute_share")] == [None] * 4


def test_the_expert_that_matters_is_found():
    planted = build_planted_model("memory", 0)
    rows = measure_worth(planted.model, plant_windows(planted, 0))["worth"]
    best = max(rows, key=lambda row: row["difference"])
    assert (best["layer"], best["expert"]) == (1, planted.truth["expert"])
    assert best["low"] > 0.5
    assert best["p"] < 1e-6


def test_twins_stand_in_for_each_other():
    # Left out alone a twin is missed less than half as much as both of them.
    planted = build_planted_model("memory", 0, {"widths": [16, 64, 64], "router": {"name": "top_k", "k": 1}})
    layer, expert = planted.model.blocks[1].ffn, planted.truth["expert"]
    other = 3 - expert
    with torch.no_grad():
        for own, copied in zip(layer.expert(other), layer.expert(expert), strict=True):
            own.copy_(copied)
        layer.router.weight[other] = 0.99 * layer.router.weight[expert]
    rows = _by_cell(measure_worth(planted.model, plant_windows(planted, 0))["worth"])
    assert abs(rows[1, expert]["difference"]) < 1e-5
    assert rows[1, other]["difference"] == 0


@pytest.mark.parametrize(
    "moe",
    [
        {},
        {"router": {"name": "top_p", "p": 0.6}},
        {"router": {"name": "top_k", "k": 2, "renormalize": False}},
        {"zero": {"null": 1}},
    ],
)
def test_numbers_equal_traces_of_each_window_alone(moe):
    planted = build_planted_model("noise", 3, moe)
    windows = [*plant_windows(planted, 0, 4), *plant_windows(planted, 1, 2, length=7)]
    windows = [(tokens, documents + (4 if len(tokens) == 7 else 0)) for tokens, documents in windows]
    windows[1][1][20:] = 2  # a document begins within a window
    calls = []
    rows = measure_worth(planted.model, windows, lambda *counts: calls.append(counts))["worth"]
    num_experts = len(planted.model.config.moe.routed_widths)
    assert calls == [(done, 2 * num_experts) for done in range(2 * num_experts + 1)]
    widths = np.array([*PLANTED_WIDTHS, 0])[:num_experts]
    pairs = sum(hmoe.trace(planted.model, tokens).num_tokens_ZE.numpy() for tokens, _ in windows)
    for row in rows[::3]:
        off = {row["layer"]: [row["expert"]]}
        sums, counts = np.zeros(6), np.zeros(6)
        for tokens, documents in windows:
            without = hmoe.trace(planted.model, tokens, without=off).nll_T
            difference = without - hmoe.trace(planted.model, tokens).nll_T
            for document, value in zip(documents[1:], difference[1:].tolist(), strict=True):
                sums[document] += value
                counts[document] += 1
        assert row["difference"] == pytest.approx(sums.sum() / counts.sum(), abs=1e-6)
        left_out = np.array(
            [(sums.sum() - s) / (counts.sum() - c) for s, c in zip(sums, counts, strict=True)]
        )
        error = np.sqrt(5 / 6 * np.square(left_out - left_out.mean()).sum())
        if error > 1e-6:
            assert row["high"] - row["difference"] == pytest.approx(stats.t.ppf(0.975, 5) * error, rel=1e-2)
        share = widths[row["expert"]] / (2 * widths.sum())
        assert row["parameter_share"] == pytest.approx(share)
        units = pairs * widths
        assert row["compute_share"] == pytest.approx(units[row["layer"], row["expert"]] / units.sum())
        if share:
            assert row["per_parameter_share"] == pytest.approx(row["difference"] / share)
        else:
            assert row["per_parameter_share"] is None


def test_p_values_after_holm_keep_their_rate_on_nulls():
    draw = np.random.default_rng(0)
    rejected = 0
    for _ in range(200):
        num_tokens = draw.integers(20, 200, 24)
        results = compare_losses(draw.normal(0, 1, (24, 10)) * np.sqrt(num_tokens)[:, None], num_tokens)
        rejected += any(result["p"] < 0.05 for result in results)
    assert stats.binomtest(rejected, 200, 0.05, alternative="greater").pvalue > 0.01
    assert rejected > 1


def test_intervals_of_documents_of_one_length_are_those_of_a_mean():
    draw = np.random.default_rng(0)
    differences = draw.normal(0.3, 1, (12, 2)) * 50
    for column, result in enumerate(compare_losses(differences, np.full(12, 50))):
        known = stats.ttest_1samp(differences[:, column] / 50, 0)
        interval = known.confidence_interval()
        assert (result["low"], result["high"]) == pytest.approx((interval.low, interval.high))
    tails = sorted(stats.ttest_1samp(differences[:, column] / 50, 0).pvalue for column in range(2))
    assert min(result["p"] for result in compare_losses(differences, np.full(12, 50))) == pytest.approx(
        2 * tails[0]
    )


def test_one_document_one_expert_and_no_text():
    planted = build_planted_model("noise", 0, {"widths": [8], "router": {"name": "top_k", "k": 1}})
    rows = measure_worth(planted.model, plant_windows(planted, 0, 1))["worth"]
    assert len(rows) == 2
    assert all(row["difference"] != 0 and row["low"] is None and row["p"] is None for row in rows)
    one_token = measure_worth(planted.model, [(np.array([1]), np.array([0]))])["worth"]
    assert all(row["difference"] is None and row["per_parameter_share"] is None for row in one_token)
    assert measure_worth(planted.model, [])["worth"] == []
    from hmoe.config.recipes import check_model

    dense = build_transformer(
        check_model({"dim": 8, "layers": 1, "heads": 1, "vocab": 9, "ffn": 8, "context": 4}), 0
    )
    with pytest.raises(ConfigError, match="dense"):
        measure_worth(dense, [])
