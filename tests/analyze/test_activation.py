import numpy as np
import pytest
from scipy import stats

from hmoe.analyze.activation import measure_activation
from hmoe.analyze.planted import plant_routing
from tests.analyze.helpers import sum_up


def test_ratios_shares_and_nulls_by_hand() -> None:
    planted = plant_routing("sizes", 1, num_documents=9)
    trace, tables = planted.text.trace, measure_activation(sum_up(planted))
    num_tokens, widths = len(trace.tokens_T), np.array(trace.widths)
    pairs_ZE = trace.num_tokens_ZE.numpy()
    for row in tables["experts"]:
        own = pairs_ZE[row["layer"], row["expert"]]
        assert (row["tokens"], row["ratio"]) == (own, pytest.approx(own / num_tokens))
        assert row["block"] == trace.blocks[row["layer"]]
        assert row["ratio_null"] == pytest.approx(pairs_ZE[row["layer"]].sum() / num_tokens / len(widths))
        work = pairs_ZE[row["layer"]] * widths
        assert row["compute_share"] == pytest.approx(work[row["expert"]] / work.sum())
        assert row["compute_share_null"] == pytest.approx(widths[row["expert"]] / widths.sum())
        for name in ("ratio", "compute_share"):
            assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]
    (overall,) = [row for row in tables["layers"] if row["layer"] is None]
    assert overall["activated_ratio"] == pytest.approx(float(trace.width_ZT.mean()) / widths.sum())
    assert sum(row["tokens"] for row in tables["experts_per_token"] if row["layer"] == 0) == num_tokens
    assert sum(row["token_share"] for row in tables["widths"]) == pytest.approx(1)
    assert sum(row["compute_share"] for row in tables["widths"]) == pytest.approx(1)
    for place, row in enumerate(tables["domains"]):
        own_T = planted.text.places.domain_T == place
        counts_ZT = trace.num_experts_ZT.numpy()[:, own_T]
        assert row["domain"] == f"domain {place}"
        assert row["experts_per_token"] == pytest.approx(counts_ZT.mean())
        assert row["null"] == pytest.approx(counts_ZT.mean() / len(widths))
    assert place == 1


def test_shares_of_widths_have_intervals_and_what_random_routing_gives() -> None:
    widths = (8, 8, 16, 32)
    planted = plant_routing("noise", 2, widths=widths, num_documents=6)
    rows = measure_activation(sum_up(planted))["widths"]
    pairs_ZTE = planted.text.trace.chosen_ZTE.numpy()
    by_document = np.stack([
        pairs_ZTE[:, planted.text.places.document_T == document].sum((0, 1)) for document in range(6)
    ])  # fmt: skip
    for row, own_E in zip(rows, np.array([8, 16, 32])[:, None] == widths, strict=True):
        for name, weight_E in (("token_share", np.ones(4)), ("compute_share", np.array(widths))):
            left_out = [
                (p * weight_E)[own_E].sum() / (p * weight_E).sum() for p in by_document.sum(0) - by_document
            ]
            total = by_document.sum(0) * weight_E
            spread = stats.t.isf(0.025, 5) * np.sqrt(5 / 6 * np.square(left_out - np.mean(left_out)).sum())
            assert row[name] == pytest.approx(total[own_E].sum() / total.sum())
            assert row[f"{name}_low"] == pytest.approx(row[name] - spread)
            assert row[f"{name}_high"] == pytest.approx(row[name] + spread)
            assert row[f"{name}_null"] == pytest.approx(weight_E[own_E].sum() / weight_E.sum())


def test_an_expert_is_dead_only_where_tokens_were_to_be_expected() -> None:
    tally = sum_up(plant_routing("digits", 0, widths=(8, 8, 16), num_layers=1, num_documents=6))
    for num_pairs, state in ((61, "dead"), (60, "dead"), (59, "unseen")):
        tally.pairs_by_fold[:] = 0
        tally.pairs_by_fold[0, 0, 2] = num_pairs
        states = [row["state"] for row in measure_activation(tally)["experts"]]
        assert states == [state, state, ""]


def test_equal_widths_are_one_row_and_idle_experts_are_named() -> None:
    planted = plant_routing("digits", 0, widths=(8, 8, 16, 0), num_layers=1, num_documents=6)
    tally = sum_up(planted)
    tally.pairs_by_fold[:, 0, 1] = 0
    tally.pairs_by_fold[:, 0, 2] = 0
    tally.pairs_by_fold[0, 0, 2] = 1
    tables = measure_activation(tally)
    assert [(row["width"], row["num_experts"]) for row in tables["widths"]] == [(0, 1), (8, 2), (16, 1)]
    assert [row["state"] for row in tables["experts"]] == ["", "dead", "rare", ""]
    assert tables["experts"][1]["ratio"] == 0


def test_a_single_document_has_no_interval() -> None:
    tables = measure_activation(sum_up(plant_routing("noise", 0, num_documents=1, num_domains=1)))
    assert tables["experts"][0]["ratio_low"] is None
    assert tables["layers"][0]["high"] is None


def test_intervals_are_of_documents_and_not_of_tokens() -> None:
    """Student's interval over documents of equal length, and far wider than one over tokens would be."""
    hits = too_narrow = 0
    for seed in range(8):
        planted = plant_routing(
            "noise", seed, num_layers=1, num_documents=30, document_effect=1.0, widths=(4, 6)
        )
        row = measure_activation(sum_up(planted))["experts"][0]
        by_document = [
            row_T.mean() for row_T in np.split(planted.text.trace.chosen_ZTE[0, :, 0].double().numpy(), 30)
        ]
        expected = stats.t.interval(0.95, 29, np.mean(by_document), stats.sem(by_document))
        hits += np.allclose((row["ratio_low"], row["ratio_high"]), expected, rtol=1e-9)
        naive = 1.96 * np.sqrt(row["ratio"] * (1 - row["ratio"]) / 6000)
        too_narrow += naive < 0.6 * (row["ratio_high"] - row["ratio"])
    assert hits == 8  # equally long documents: the jackknife of their mean is Student's interval
    assert too_narrow > 6
