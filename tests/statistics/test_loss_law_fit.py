"""Known coefficients come back, and what the points do not tell is not told."""

from dataclasses import replace

import numpy as np
import pytest

from hmoe.statistics.loss_law import LossLaw, collect_columns
from hmoe.statistics.loss_law_fit import count_distinct, find_edges, fit_loss_law
from tests.statistics.law_oracle import fit_law_slowly
from tests.statistics.planted_families import BUDGETS, LAW, SIZES, plant_points


@pytest.mark.parametrize(
    "law", [LAW, LossLaw(1.69, 406.4, 410.7, 0.34, 0.28), LossLaw(0.5, 3e3, 40.0, 0.7, 0.25)]
)
@pytest.mark.parametrize("sizes", [SIZES, (1e5, 3e5, 2e6)])
def test_known_coefficients_come_back_without_noise(law: LossLaw, sizes: tuple[float, ...]) -> None:
    fit = fit_loss_law(plant_points({"a": law}, sizes=sizes))
    assert fit.law is not None
    assert fit.law.coefficients == pytest.approx(law.coefficients, rel=1e-4)
    assert fit.doubts == {}
    assert fit.converged
    assert fit.residual == pytest.approx(0, abs=1e-9)


def test_a_noisy_fit_is_that_of_the_slow_definition() -> None:
    points = plant_points({"a": LAW}, np.random.default_rng(4), num_seeds=1)
    sizes, tokens, losses = collect_columns(points)
    slow, squares = fit_law_slowly(sizes, tokens, losses)
    fit = fit_loss_law(points)
    assert fit.law is not None
    assert (fit.law.E, fit.law.alpha, fit.law.beta) == pytest.approx((slow[0], slow[3], slow[4]), rel=1e-3)
    assert fit.residual == pytest.approx((squares / len(points)) ** 0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("sizes", "budgets", "reason"),
    [
        ((2e5, 1.6e6), BUDGETS, "2 sizes, a law needs 3"),
        ((2e5, 2.001e5, 1.6e6), BUDGETS, "2 sizes"),
        (SIZES, (1e12,), "same FLOPs"),
        (SIZES[:3], (1e12, 1.004e12), "same FLOPs"),
        ((), (), "0 sizes"),
    ],
)
def test_too_little_gives_a_reason_and_no_law(
    sizes: tuple[float, ...], budgets: tuple[float, ...], reason: str
) -> None:
    fit = fit_loss_law(plant_points({"a": LAW}, sizes=sizes, budgets=budgets))
    assert fit.law is None
    assert fit.reason is not None
    assert reason in fit.reason


def test_two_token_counts_and_five_points_are_too_little() -> None:
    points = plant_points({"a": LAW})
    same = [
        replace(point, tokens=tokens, flops=6 * point.model_size * tokens, budget=tokens)
        for point in points
        for tokens in (1e6, 2e6)
    ]
    assert "2 token counts" in (fit_loss_law(same).reason or "")
    assert "5 points" in (fit_loss_law([points[k] for k in (0, 2, 8, 16, 18)]).reason or "")


def test_sizes_that_drift_with_the_router_are_no_further_sizes() -> None:
    generator = np.random.default_rng(0)
    drifted = []
    for point in plant_points({"a": LAW}, sizes=SIZES[:2]):
        tokens = point.tokens * float(
            np.exp(0.02 * generator.standard_normal())
        )  # 2% in what a token activates
        drifted.append(replace(point, tokens=tokens))
    assert count_distinct(np.array([point.model_size for point in drifted])) > 2
    assert fit_loss_law(drifted).reason == "2 sizes, a law needs 3"
    one_budget = [
        replace(point, tokens=point.tokens * float(np.exp(0.02 * generator.standard_normal())))
        for point in plant_points({"a": LAW}, budgets=BUDGETS[:1])
    ]
    assert "same FLOPs" in (fit_loss_law(one_budget).reason or "")


def test_losses_of_another_form_are_told_from_those_of_the_law() -> None:
    misfits = [
        fit_loss_law(plant_points({"a": LAW}, np.random.default_rng(draw), num_seeds=3)).misfit
        for draw in range(40)
    ]
    assert sum(misfit is not None for misfit in misfits) <= 3  # 1% are expected where nothing is amiss
    bent = [
        replace(point, loss=point.loss + 0.05 * np.log(point.model_size / 5e5) * np.log(point.tokens / 3e6))
        for point in plant_points({"a": LAW}, np.random.default_rng(1), num_seeds=3)
    ]
    misfit = fit_loss_law(bent).misfit
    assert misfit is not None
    assert misfit > 2
    assert fit_loss_law(plant_points({"a": LAW}, np.random.default_rng(1), num_seeds=1)).misfit is None


def test_what_lies_at_an_edge_is_named() -> None:
    flat = fit_loss_law(plant_points({"a": LossLaw(2.0, 0.0, LAW.B, 0.3, LAW.beta)}))
    assert {"alpha", "A"} <= set(flat.doubts) or flat.law is None
    steep = fit_loss_law(plant_points({"a": LossLaw(2.0, 1e14, LAW.B, 2.7, LAW.beta)}))
    assert "edge" in steep.doubts["alpha"]
    assert {"A", "E"} <= set(steep.doubts)
    floorless = fit_loss_law(plant_points({"a": LossLaw(-0.5, LAW.A, LAW.B, LAW.alpha, LAW.beta)}))
    assert set(floorless.doubts) == {"E"}
    assert floorless.law is not None
    assert floorless.law.E == 0
    assert find_edges(floorless.law.coefficients)
    assert not find_edges(LAW.coefficients)


def test_values_closer_than_one_percent_are_one() -> None:
    assert count_distinct(np.array([1.0, 1.005, 1.02, 3.0])) == 3
    assert count_distinct(np.empty(0)) == 0
