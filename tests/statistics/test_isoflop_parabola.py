"""Parabolas find the bottom of parabolas, claim none that they do not see, and are biased on a law's losses."""

import math
from dataclasses import replace

import pytest

from hmoe.statistics.isoflop_parabola import fit_optimum_power_law, fit_parabolas
from hmoe.statistics.loss_law import LossLaw, LossPoint
from hmoe.statistics.loss_law_fit import fit_loss_law
from tests.statistics.planted_families import LAW, plant_points


def bowl(
    bottom: float, budget: float = 1e12, sizes: tuple[float, ...] = (1e5, 2e5, 5e5), curve: float = 0.1
) -> list[LossPoint]:
    losses = [3 + curve * math.log(size / bottom) ** 2 for size in sizes]
    return [
        LossPoint("a", f"s{k}", 0, budget, budget, budget / 6 / size, loss, f"r{k}")
        for k, (size, loss) in enumerate(zip(sizes, losses, strict=True))
    ]


def test_the_bottom_of_a_parabola_is_where_it_was_put() -> None:
    parabola = fit_parabolas(bowl(2.5e5))[0]
    assert parabola.optimal_size == pytest.approx(2.5e5, rel=1e-9)
    assert parabola.minimum_loss == pytest.approx(3, rel=1e-12)
    assert parabola.curvature == pytest.approx(0.2, rel=1e-9)
    assert parabola.best_size == pytest.approx(2e5)
    assert parabola.reason is None


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (bowl(0.9e5), "below the smallest size"),
        (bowl(6e5), "above the largest size"),
        (bowl(2e5, curve=-0.1), "does not curve upwards"),
        (bowl(2e5)[:2], "2 sizes"),
    ],
)
def test_no_optimum_is_claimed_that_is_not_seen(points: list[LossPoint], reason: str) -> None:
    parabola = fit_parabolas(points)[0]
    assert parabola.optimal_size is parabola.minimum_loss is None
    assert parabola.reason is not None
    assert reason in parabola.reason


def test_flops_that_differ_are_carried_as_their_mean() -> None:
    points = [
        replace(point, flops=point.flops * f, tokens=point.tokens * f)
        for point, f in zip(bowl(2e5), (0.98, 1.0, 1.05), strict=True)
    ]
    parabola = fit_parabolas(points)[0]
    assert parabola.flops == pytest.approx(1.01e12)
    assert parabola.flops_spread == pytest.approx(0.07 / 1.01)
    assert parabola.optimal_size == pytest.approx(2e5)


def test_optima_are_a_power_of_flops() -> None:
    points = [point for budget in (1e12, 4e12, 9e12) for point in bowl(0.15 * budget**0.5, budget)]
    law = fit_optimum_power_law(fit_parabolas(points))
    assert law is not None
    assert (law.exponent, law.scale, law.num_points) == pytest.approx((0.5, 0.15, 3), rel=1e-6)
    assert law.predict(1e14) == pytest.approx(1.5e6, rel=1e-6)
    assert fit_optimum_power_law(fit_parabolas([*bowl(2e5), *bowl(9e5, 3e12)])) is None


@pytest.mark.parametrize("law", [LAW, LossLaw(1.7, LAW.A * 12, LAW.B, 0.55, 0.4)])
def test_without_noise_the_parabola_is_biased_and_the_law_is_not(law: LossLaw) -> None:
    """On a wide grid that is not centred on the optimum."""
    optimum = law.optimal_size(1e13)
    assert optimum is not None
    sizes = [optimum[0] * factor for factor in (0.5, 2, 8, 32)]
    points = plant_points({"a": law}, sizes=sizes, num_seeds=1)
    parabola = next(p for p in fit_parabolas(points) if p.budget == 1e13)
    fitted = fit_loss_law(points).law
    assert fitted is not None
    assert parabola.optimal_size is not None
    assert abs(math.log(parabola.optimal_size / optimum[0])) > 0.05
    assert fitted.optimal_size(1e13) == pytest.approx(optimum, rel=1e-4)
