"""Resamples keep runs whole and families paired; their intervals' coverage is in test_isoflop_coverage."""

from dataclasses import replace

import numpy as np
import pytest

from hmoe.errors import ConfigError
from hmoe.statistics.loss_law import LossPoint, compute_frontier_loss, predict_loss
from hmoe.statistics.run_bootstrap import (
    FamilyResamples,
    PercentileInterval,
    compute_percentile_interval,
    resample_families,
)
from tests.statistics.planted_families import LAW, plant_points, shift_law


def group(points: list[LossPoint]) -> dict[str, list[LossPoint]]:
    families: dict[str, list[LossPoint]] = {}
    for point in points:
        families.setdefault(point.family, []).append(point)
    return families


def difference_width(resamples: dict[str, FamilyResamples], flops: float = 1e13) -> float:
    first, second = (compute_frontier_loss(each.coefficients, flops) for each in resamples.values())
    return float(np.ptp(np.percentile(second - first, [2.5, 97.5])))


def test_without_noise_every_resample_is_the_law() -> None:
    resamples = resample_families(group(plant_points({"a": LAW})), 20)["a"]
    assert resamples.coefficients == pytest.approx(np.tile(LAW.coefficients, (20, 1)), rel=1e-3)
    assert (resamples.num_failed, resamples.num_at_edge, resamples.num_runs) == (0, 0, 8)


@pytest.mark.parametrize(("is_nested", "num_runs", "degrees"), [(True, 8, 5), (False, 32, 27)])
def test_degrees_are_runs_less_what_the_fit_takes_between_them(
    is_nested: bool, num_runs: int, degrees: float
) -> None:
    """Budgets of one run tell of D without another run: of the five coefficients three are left to pay for."""
    points = plant_points({"a": LAW}, np.random.default_rng(0), is_nested=is_nested)
    resamples = resample_families(group(points), 5)["a"]
    assert resamples.num_runs == num_runs
    assert resamples.degrees == pytest.approx(degrees, abs=0.05)


def test_noise_that_families_share_leaves_their_difference() -> None:
    """Every row of both has the same shift; without the pairing by seed the difference is as wide as each."""
    points = plant_points({"a": LAW}, np.random.default_rng(1))
    shifted = [replace(point, family="b", run=f"b{point.run}", loss=point.loss + 0.05) for point in points]
    paired = resample_families(group([*points, *shifted]), 100)
    rows = [compute_frontier_loss(paired[name].coefficients, 1e13) for name in ("a", "b")]
    assert rows[1] - rows[0] == pytest.approx(np.full(100, 0.05), abs=1e-3)
    assert np.ptp(rows[0]) > 0.01
    others = [replace(point, seed=point.seed + 2) for point in shifted]
    assert difference_width(resample_families(group([*points, *others]), 100)) > 0.01


def test_noise_that_is_shared_narrows_the_difference() -> None:
    widths = {}
    for shared in (0.0, 0.95):
        laws = {"a": LAW, "b": shift_law(LAW, -0.02)}
        experiments = [plant_points(laws, np.random.default_rng(seed), shared=shared) for seed in range(2)]
        widths[shared] = np.mean([difference_width(resample_families(group(p), 80)) for p in experiments])
    assert widths[0.95] < 0.6 * widths[0.0]


def test_a_residual_stays_with_its_run_and_budget() -> None:
    """Noise at the last budget alone leaves the losses of the first as they are, whoever gives the residuals."""
    points = plant_points({"a": LAW}, np.random.default_rng(2), run_noise=0.0, point_noise=0.0)
    noisy = [
        replace(point, loss=point.loss + 0.02 * (-1) ** point.seed) if point.budget == 3e13 else point
        for point in points
    ]
    coefficients = resample_families(group(noisy), 200)["a"].coefficients
    spreads = [predict_loss(coefficients, 4e5, budget / 6 / 4e5).std() for budget in (1e12, 3e12, 1e13, 3e13)]
    assert max(spreads[:2]) < spreads[3] / 2


def test_a_run_that_is_missing_or_ended_early_is_no_obstacle() -> None:
    points = plant_points({"a": LAW, "b": LAW}, np.random.default_rng(3))
    left = [
        point
        for point in points
        if point.run != "a-1-0" and not (point.run == "b-2-1" and point.budget > 3e12)
    ]
    resamples = resample_families(group(left), 50)
    assert (resamples["a"].num_runs, resamples["b"].num_runs) == (7, 8)
    assert all(np.isfinite(each.coefficients).all() for each in resamples.values())


def test_runs_without_a_spread_have_no_resamples() -> None:
    points = plant_points({"a": LAW, "b": LAW}, np.random.default_rng(4))
    left = [point for point in points if point.family == "a" or (point.seed == 0 and point.size != "s0")]
    assert set(resample_families(group(left), 5)) == {"a"}
    assert resample_families({"a": points[:3]}) == {}


def test_the_same_seed_draws_the_same() -> None:
    families = group(plant_points({"a": LAW}, np.random.default_rng(5)))
    first, again, other = (resample_families(families, 8, seed)["a"].coefficients for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_two_points_of_a_run_at_a_budget_are_refused() -> None:
    points = plant_points({"a": LAW}, np.random.default_rng(6))
    with pytest.raises(ConfigError, match=r"family a, size s0, seed 0: two points of the budget 1e\+12"):
        resample_families({"a": [*points, points[0]]})
    with pytest.raises(ConfigError, match="num_resamples = 0"):
        resample_families({"a": points}, 0)


def test_percentiles_leave_out_what_failed_and_are_open_where_infinite() -> None:
    draws = [*np.arange(1.0, 101.0), np.nan, np.nan]
    assert compute_percentile_interval(50.0, draws, 0.9) == PercentileInterval(50.0, 5.0, 96.0, 100)
    opened = compute_percentile_interval(np.inf, [1.0, 2.0, 3.0, np.inf], 0.5)
    assert (opened.value, opened.low, opened.high) == (None, 1.0, None)
    assert opened.excludes(0.5)
    assert not opened.excludes(5.0)
    assert compute_percentile_interval(1.0, []) == PercentileInterval(1.0, None, None, 0)
    assert not compute_percentile_interval(1.0, []).excludes(0.0)
