"""The whole record of a comparison, its sentences and rows; a planted difference is shown, a null is not."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy import optimize

from hmoe.errors import ConfigError
from hmoe.statistics.isoflop import OPTIMUM_EXPONENT, IsoflopResult, analyze_isoflop
from hmoe.statistics.isoflop_words import describe_isoflop, format_interval, tabulate_isoflop
from hmoe.statistics.leverage import ComputeCost
from hmoe.statistics.loss_law import LossLaw
from hmoe.statistics.run_bootstrap import PercentileInterval
from tests.statistics.planted_families import BUDGETS, LAW, plant_points, scale_law, shift_law

LAWS = {"unequal": scale_law(LAW, 1.25), "equal": LAW, "control": LAW}
COSTS = {"equal": ComputeCost(1e-12, 0.01), "unequal": ComputeCost(1.25e-12, 0.01)}
SIZES = (1.5e5, 3e5, 6e5, 1.2e6)


@pytest.fixture(scope="module")
def result() -> IsoflopResult:
    points = plant_points(LAWS, np.random.default_rng(0), sizes=SIZES)
    return analyze_isoflop(points, "equal", COSTS, num_resamples=100)


def test_the_reference_comes_first_and_is_compared_with_nobody(result: IsoflopResult) -> None:
    assert [family.family for family in result.families] == ["equal", "unequal", "control"]
    for budget in result.families[0].budgets:
        assert budget.leverage is budget.difference is budget.leverage_in_seconds is None
    assert result.comparison_confidence == pytest.approx(0.975)


def test_a_planted_leverage_is_shown_and_a_null_is_not(result: IsoflopResult) -> None:
    _, unequal, control = result.families
    for planted, null in zip(unequal.budgets[1:], control.budgets[1:], strict=True):
        assert planted.leverage is not None
        assert planted.leverage.interval.low is not None
        assert planted.leverage.interval.high is not None
        assert 1 < planted.leverage.interval.low < 1.25 < planted.leverage.interval.high
        assert planted.difference is not None
        assert planted.difference.high is not None
        assert planted.difference.high < 0
        assert null.leverage is not None
        assert not null.leverage.interval.excludes(1.0)
        assert null.difference is not None
        assert not null.difference.excludes(0.0)
        assert null.leverage_in_seconds is None


def test_sentences_are_as_strong_as_intervals(result: IsoflopResult) -> None:
    sentences = describe_isoflop(result)
    leverage = result.families[1].budgets[-1].leverage
    assert leverage is not None
    words = format_interval(leverage.interval, ".2f", "x")
    assert sentences[0] == f"unequal at 3.0e13 FLOPs is worth {words} of the compute of equal: worth more."
    text = "\n".join(sentences)
    assert "control at 3.0e13 FLOPs is worth" in text
    control = next(line for line in sentences if line.startswith("control at"))
    assert control.endswith("of the compute of equal: no difference shown.")
    assert "In seconds, by runs side by side, it is worth" in text
    assert "Bonferroni: 97.5% each" in text
    assert "Extrapolated: FLOPs of the reference" in text
    assert "Parabola and law of equal disagree most" in text


def test_rows_are_enough_to_recompute_the_leverage(result: IsoflopResult) -> None:
    """From the coefficients alone, by searching for the best sizes and for the FLOPs, as an outside script would."""
    rows = json.loads(json.dumps(tabulate_isoflop(result)))
    assert len(rows) == 3 * len(BUDGETS)
    assert len({tuple(row) for row in rows}) == 1

    def search_frontier(row: dict[str, float], flops: float) -> float:
        def loss(x: float) -> float:
            size = math.exp(x)
            tokens = flops / 6 / size
            return float(row["E"] + row["A"] * size ** -row["alpha"] + row["B"] * tokens ** -row["beta"])

        return float(
            optimize.minimize_scalar(loss, bounds=(5, 25), method="bounded", options={"xatol": 1e-10}).fun
        )

    reference = next(row for row in rows if row["family"] == "equal")
    for row in rows:
        if row["family"] == "equal":
            assert row["leverage"] is None
            continue
        loss = search_frontier(row, row["budget"])
        assert row["frontier_loss"] == pytest.approx(loss, rel=1e-9)
        flops = optimize.brentq(
            lambda x, loss=loss: search_frontier(reference, math.exp(x)) - loss, 20, 40, xtol=1e-12
        )
        assert row["leverage"] == pytest.approx(math.exp(flops) / row["budget"], rel=1e-6)
        assert row["leverage_low"] <= row["leverage"] <= row["leverage_high"]


def test_both_fits_are_given_with_their_disagreement(result: IsoflopResult) -> None:
    for family in result.families:
        law = family.fit.law
        assert law is not None
        assert family.coefficients[OPTIMUM_EXPONENT].value == pytest.approx(law.beta / (law.alpha + law.beta))
        for budget in family.budgets:
            assert budget.parabola is not None
            assert budget.optimal_size is not None
            if budget.parabola.optimal_size is not None:
                assert budget.size_disagreement == pytest.approx(
                    budget.parabola.optimal_size / (budget.optimal_size.value or 0), rel=1e-9
                )
            else:
                assert budget.size_disagreement is budget.loss_disagreement is None
    assert asdict(result)["families"][1]["budgets"][0]["leverage"]["flops"] == 1e12


def test_a_family_without_a_law_is_in_the_record_with_the_reason() -> None:
    points = plant_points({"equal": LAW, "few": LAW}, np.random.default_rng(1), num_seeds=1, sizes=SIZES)
    left = [point for point in points if point.family == "equal" or point.size in ("s0", "s3")]
    result = analyze_isoflop(left, "equal", num_resamples=5)
    few = result.families[1]
    assert few.fit.law is None
    assert few.coefficients == {}
    assert all(budget.leverage is budget.optimal_size is None for budget in few.budgets)
    sentences = describe_isoflop(result)
    assert "few cannot be compared with equal: 2 sizes, a law needs 3." in sentences
    assert "few has no law: 2 sizes, a law needs 3." in sentences
    assert tabulate_isoflop(result)[-1]["E"] is None


def test_without_a_spread_nothing_is_shown() -> None:
    points = plant_points({"equal": LAW, "unequal": scale_law(LAW, 1.25)}, num_seeds=1, sizes=SIZES[:3])
    result = analyze_isoflop(points, "equal", num_resamples=5)
    sentences = describe_isoflop(result)
    assert sentences[0].endswith(
        "1.25x (no interval) of the compute of equal: without an interval nothing is shown."
    )
    assert any(line.startswith("equal has no intervals: too few runs") for line in sentences)


def test_a_loss_that_the_reference_never_reaches_is_told_as_that() -> None:
    points = plant_points({"equal": LAW, "low": shift_law(LAW, -1.69)}, np.random.default_rng(1), sizes=SIZES)
    far = [replace(p, budget=p.budget * 100, flops=p.flops * 100, tokens=p.tokens * 100) for p in points]
    result = analyze_isoflop(
        [
            replace(p, loss=float(LAW.predict(p.model_size, p.tokens)) - 1.69 * (p.family == "low"))
            for p in far
        ],
        "equal",
        num_resamples=5,
    )
    assert "reaches a loss that equal by its law never reaches" in describe_isoflop(result)[0]


def test_doubtful_coefficients_are_not_given() -> None:
    law = LossLaw(-0.5, LAW.A, LAW.B, LAW.alpha, LAW.beta)
    result = analyze_isoflop(plant_points({"equal": law}), "equal", num_resamples=5)
    assert "E" not in result.families[0].coefficients
    assert "alpha" in result.families[0].coefficients
    assert any(line.startswith("E of equal is not told by the points") for line in describe_isoflop(result))


def test_a_reference_that_is_no_family_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="reference = eqal: must be a family: control, equal, unequal"):
        analyze_isoflop(plant_points(LAWS), "eqal")


def test_intervals_in_words() -> None:
    assert format_interval(PercentileInterval(1.07, 0.98, 1.15, 9), ".2f", "x") == "1.07x (0.98 to 1.15)"
    assert format_interval(PercentileInterval(1.07, 0.98, None, 9), ".2f", "x") == "1.07x (0.98 to open)"
    assert format_interval(PercentileInterval(1.07, None, None, 0), ".2f", "x") == "1.07x (no interval)"
