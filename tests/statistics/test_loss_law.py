"""What follows from the law in closed form, against searching for it."""

import math

import numpy as np
import pytest
from scipy import optimize

from hmoe.errors import ConfigError
from hmoe.statistics.loss_law import LossLaw, LossPoint
from tests.statistics.planted_families import LAW


@pytest.mark.parametrize("flops", [1e12, 3e13, 1e19])
@pytest.mark.parametrize("law", [LAW, LossLaw(0.0, 400.0, 30.0, 0.5, 0.2)])
def test_the_best_size_is_where_a_search_has_it(law: LossLaw, flops: float) -> None:
    search = optimize.minimize_scalar(
        lambda x: float(law.predict(math.exp(x), flops / 6 / math.exp(x))),
        bounds=(0, 40),
        method="bounded",
        options={"xatol": 1e-9},
    )
    optimum = law.optimal_size(flops)
    assert optimum is not None
    size, tokens = optimum
    assert size == pytest.approx(math.exp(search.x), rel=1e-5)
    assert 6 * size * tokens == pytest.approx(flops, rel=1e-12)
    assert law.frontier_loss(flops) == pytest.approx(search.fun, rel=1e-12)
    assert law.flops_for_loss(search.fun) == pytest.approx(flops, rel=1e-9)


def test_no_budget_reaches_the_floor_and_no_size_its_own() -> None:
    assert LAW.flops_for_loss(LAW.E) is LAW.flops_for_loss(LAW.E - 0.1) is None
    floor = float(LAW.predict(4e5, 1e300))
    assert LAW.flops_for_loss_at_size(floor - 1e-6, 4e5) is None
    assert LAW.flops_for_loss_at_size(float(LAW.predict(4e5, 7e6)), 4e5) == pytest.approx(6 * 4e5 * 7e6)


def test_a_law_in_which_only_tokens_matter_has_no_best_size() -> None:
    law = LossLaw(1.0, 0.0, 5.0, 0.3, 0.4)
    assert law.optimal_size(1e12) is law.frontier_loss(1e12) is law.flops_for_loss(2.0) is None
    assert law.flops_for_loss_at_size(2.0, 10.0) == pytest.approx(60 * 5 ** (1 / 0.4))


def test_size_is_what_flops_pay_for() -> None:
    point = LossPoint("unequal", "small", 0, 1e12, 1.02e12, 3e5, 4.0, "run", activated_parameters=5e5)
    assert 6 * point.model_size * point.tokens == pytest.approx(point.flops, rel=1e-15)
    assert point.flops_per_token == pytest.approx(3.4e6)


@pytest.mark.parametrize("name", ["budget", "flops", "tokens", "loss"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_points_are_positive_numbers(name: str, value: float) -> None:
    values = {"budget": 1e12, "flops": 1e12, "tokens": 1e5, "loss": 4.0, name: value}
    with pytest.raises(ConfigError, match=f"^{name} = .*run a-1 .*size small, seed 3"):
        LossPoint("a", "small", 3, run="a-1", **values)


def test_predictions_broadcast() -> None:
    losses = LAW.predict(np.array([[2e5], [4e5]]), np.array([1e6, 2e6, 4e6]))
    assert losses.shape == (2, 3)
    assert losses[1, 2] == pytest.approx(LAW.E + LAW.A * 4e5**-LAW.alpha + LAW.B * 4e6**-LAW.beta, rel=1e-14)
