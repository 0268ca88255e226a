"""Leverage that was planted is read back, in FLOPs and seconds, and is open where the reference never gets there."""

import math

import numpy as np
import pytest

from hmoe.errors import ConfigError
from hmoe.statistics.leverage import (
    ComputeCost,
    FittedFamily,
    estimate_leverage,
    estimate_leverage_in_seconds,
)
from hmoe.statistics.loss_law import LossLaw
from hmoe.statistics.loss_law_fit import fit_loss_law
from hmoe.statistics.run_bootstrap import resample_families
from tests.statistics.planted_families import BUDGETS, LAW, plant_points, scale_law, shift_law

CENTRED = (1.5e5, 3e5, 6e5, 1.2e6)


def fit_pair(law: LossLaw, seed: int | None, num_resamples: int = 100) -> tuple[FittedFamily, FittedFamily]:
    """The family of this law and the reference, fitted to losses with noise of a seed."""
    generator = None if seed is None else np.random.default_rng(seed)
    points = plant_points({"a": law, "reference": LAW}, generator, sizes=CENTRED)
    groups = {name: [point for point in points if point.family == name] for name in ("a", "reference")}
    resamples = {} if seed is None else resample_families(groups, num_resamples)
    fits = {name: fit_loss_law(each).law for name, each in groups.items()}
    pair = [
        FittedFamily(groups[name], law, resamples.get(name)) for name, law in fits.items() if law is not None
    ]
    return pair[0], pair[1]


@pytest.mark.parametrize("budget", BUDGETS)
def test_planted_leverage_is_read_back_without_noise(budget: float) -> None:
    leverage = estimate_leverage(*fit_pair(scale_law(LAW, 1.3), None), budget)
    assert leverage is not None
    assert leverage.interval.value == pytest.approx(1.3, rel=1e-4)
    assert leverage.reference_flops == pytest.approx(1.3 * budget, rel=1e-4)
    assert leverage.loss == pytest.approx(scale_law(LAW, 1.3).frontier_loss(budget), rel=1e-6)
    assert leverage.interval.num_used == leverage.share_unreached == 0


def test_a_planted_leverage_is_in_its_interval_and_a_null_is_not_shown() -> None:
    planted = estimate_leverage(*fit_pair(scale_law(LAW, 1.3), 0), 1e13)
    null = estimate_leverage(*fit_pair(LAW, 0), 1e13)
    assert planted is not None
    assert null is not None
    assert planted.interval.low is not None
    assert planted.interval.high is not None
    assert 1.1 < planted.interval.low < 1.3 < planted.interval.high < 1.5
    assert planted.interval.excludes(1.0)
    assert not null.interval.excludes(1.0)


def test_more_confidence_is_a_wider_interval() -> None:
    pair = fit_pair(scale_law(LAW, 1.3), 0)
    ends = []
    for confidence in (0.8, 0.99):
        leverage = estimate_leverage(*pair, 1e13, confidence=confidence)
        assert leverage is not None
        ends.append((leverage.interval.low or 0, leverage.interval.high or 0))
    assert ends[1][0] < ends[0][0] < ends[0][1] < ends[1][1]


def test_at_the_same_size_it_is_another_number() -> None:
    """Tokens that count 1.2 times are worth 1.2 anywhere; sizes that do are worth 1.2 at the best ones alone."""
    tokens = LossLaw(LAW.E, LAW.A, LAW.B * 1.2**-LAW.beta, LAW.alpha, LAW.beta)
    size = LossLaw(LAW.E, LAW.A * 1.2**-LAW.alpha, LAW.B, LAW.alpha, LAW.beta)
    values = {}
    for name, family in (("tokens", tokens), ("size", size)):
        for model_size in (None, 4e5):
            leverage = estimate_leverage(*fit_pair(family, None), 1e13, model_size)
            assert leverage is not None
            values[name, model_size] = leverage.interval.value
    loss = float(size.predict(4e5, 1e13 / 6 / 4e5))
    expected = LAW.flops_for_loss_at_size(loss, 4e5)
    assert expected is not None
    assert values["tokens", None] == pytest.approx(1.2, rel=1e-4)
    assert values["tokens", 4e5] == pytest.approx(1.2, rel=1e-4)
    assert values["size", None] == pytest.approx(1.2, rel=1e-4)
    assert values["size", 4e5] == pytest.approx(expected / 1e13, rel=1e-4)
    assert expected / 1e13 > 1.25


def test_a_loss_below_the_floor_of_the_reference_has_no_leverage_but_a_least_one() -> None:
    reached = {}
    for shift in (-0.9, -1.69):
        leverage = estimate_leverage(*fit_pair(shift_law(LAW, shift), 1), 3e15)
        assert leverage is not None
        assert leverage.reference_flops is leverage.interval.value is leverage.interval.high is None
        assert leverage.interval.low is not None
        reached[shift] = leverage
    assert 1 < (reached[-0.9].interval.low or 0) < math.inf
    assert 0.5 < reached[-0.9].share_unreached < 1
    assert reached[-1.69].interval.low == math.inf
    assert reached[-1.69].interval.excludes(1.0)
    assert reached[-1.69].share_unreached > 0.975


def test_what_lies_outside_the_points_is_named() -> None:
    inside = estimate_leverage(*fit_pair(LAW, None), 1e13)
    assert inside is not None
    assert inside.extrapolations == ()
    beyond = estimate_leverage(*fit_pair(scale_law(LAW, 1.3), None), 3e13)
    assert beyond is not None
    assert [words.split(",")[0] for words in beyond.extrapolations] == ["FLOPs of the reference"]
    far = estimate_leverage(*fit_pair(LAW, None), 1e15)
    assert far is not None
    assert len(far.extrapolations) == 4
    fixed = estimate_leverage(*fit_pair(LAW, None), 1e13, model_size=5e6)
    assert fixed is not None
    assert [words.split(",")[0] for words in fixed.extrapolations] == [
        "size of the family",
        "size of the reference",
    ]


def test_a_law_without_a_frontier_has_none_at_best_sizes() -> None:
    flat = FittedFamily([], LossLaw(1.0, 0.0, LAW.B, 0.3, LAW.beta))
    assert estimate_leverage(flat, FittedFamily([], LAW), 1e13) is None
    assert estimate_leverage(FittedFamily([], LAW), flat, 1e13) is None


def test_in_seconds_a_slower_family_is_worth_less_and_rough_costs_widen() -> None:
    pair = fit_pair(scale_law(LAW, 1.3), 0)
    flops = estimate_leverage(*pair, 1e13)
    assert flops is not None
    assert flops.interval.value is not None
    widths = []
    for error in (None, 0.0, 0.05):
        costs = ComputeCost(1.25e-12, error), ComputeCost(1e-12)
        seconds = estimate_leverage_in_seconds(*pair, 1e13, costs)
        assert seconds.value == pytest.approx(flops.interval.value / 1.25, rel=1e-12)
        assert seconds.low is not None
        assert seconds.high is not None
        widths.append(math.log(seconds.high / seconds.low))
    assert widths[0] == widths[1] < widths[2] - 0.05
    for low, flops_low in ((seconds.low, flops.interval.low),):
        assert flops_low is not None
        assert low < flops_low / 1.25


@pytest.mark.parametrize(("seconds", "error"), [(0.0, None), (-1.0, None), (1.0, -0.1), (1.0, 1.0)])
def test_costs_are_above_zero(seconds: float, error: float | None) -> None:
    with pytest.raises(ConfigError, match="must be"):
        ComputeCost(seconds, error)
