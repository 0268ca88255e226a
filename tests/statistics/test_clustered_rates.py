import numpy as np
import pytest
from scipy import stats

from hmoe.statistics.clustered_rates import GroupedCounts, compute_excess_tails, estimate_ratio_interval

NOTHING = np.array(0.0)


def group_counts(successes, trials, num_groups=None):
    """From successes (groups, kinds) and trials of the same shape."""
    return GroupedCounts(
        successes.sum(0),
        trials.sum(0),
        np.square(successes).sum(0),
        (successes * trials).sum(0),
        np.square(trials).sum(0),
        (trials > 0).sum(0) if num_groups is None else num_groups,
    )


def draw_groups(draw, shape, rate, correlation, most=8):
    """Successes with a rate that varies from group to group."""
    trials = draw.integers(1, most, shape)
    a = rate * (1 / correlation - 1)
    rates = (
        draw.beta(a, a * (1 - rate) / rate, (shape[0], 1))
        if correlation < 1
        else draw.random((shape[0], 1)) < rate
    )
    return draw.binomial(trials, rates), trials


def test_variance_is_that_of_the_residuals():
    draw = np.random.default_rng(0)
    successes, trials = draw_groups(draw, (30, 4), 0.3, 0.2)
    trials[:7, 1] = successes[:7, 1] = 0
    counts = group_counts(successes, trials)
    for kind in range(4):
        rate = successes[:, kind].sum() / trials[:, kind].sum()
        groups = (trials[:, kind] > 0).sum()
        total = sum((k - rate * n) ** 2 for k, n in zip(successes[:, kind], trials[:, kind], strict=True))
        expected = total / trials[:, kind].sum() ** 2 * groups / (groups - 1)
        assert counts.variance[kind] == pytest.approx(expected)
    fewer = group_counts(successes, trials, np.array(1))
    assert (fewer.variance >= counts.variance).all()


def test_correlation_and_effect_are_those_that_were_drawn():
    draw = np.random.default_rng(1)
    successes, trials = (
        np.concatenate(parts, 1)
        for parts in zip(*(draw_groups(draw, (200, 1), 0.3, 0.25) for _ in range(40)), strict=True)
    )
    counts = group_counts(successes, trials)
    assert counts.correlation == pytest.approx(0.25, abs=0.03)
    expected = 1 + 0.25 * ((trials**2).sum() / trials.sum() - 1)
    assert counts.effect.mean() == pytest.approx(expected, rel=0.1)
    independent = group_counts(draw.binomial(trials, 0.3), trials)
    assert independent.correlation == pytest.approx(0, abs=0.02)
    some = counts.select(np.array([3, 5]))
    np.testing.assert_array_equal(some.effect, counts.effect[[3, 5]])


def test_independent_trials_have_at_least_the_binomial_p():
    trials = np.ones((400, 3), np.int64)
    successes = np.zeros((400, 3), np.int64)
    successes[:60, 0] = successes[:52, 1] = successes[:30, 2] = 1
    tails = compute_excess_tails(group_counts(successes, trials), np.full(3, 0.1), NOTHING)
    exact = [stats.binomtest(k, 400, 0.1, "greater").pvalue for k in (60, 52, 30)]
    assert tails[2] == 1  # not above
    assert exact[0] <= tails[0] < exact[1] <= tails[1] < 0.05  # nor is much given away


def test_nothing_can_be_told_from_a_single_group():
    counts = group_counts(np.array([[30], [0]]), np.array([[30], [0]]))
    assert compute_excess_tails(counts, np.array([0.1]), NOTHING) == [1]
    low, high = estimate_ratio_interval(counts, np.array([0.1]), NOTHING, 5)
    assert (low, high) == (0, np.inf)


@pytest.mark.parametrize(("rate", "correlation"), [(0.1, 0.3), (0.5, 0.5), (0.9, 0.3), (0.2, 1.0)])
def test_p_holds_when_groups_differ(rate, correlation):
    draw = np.random.default_rng(2)
    false = binomial = 0
    for _ in range(400):
        successes, trials = (
            np.concatenate(parts, 1)
            for parts in zip(*(draw_groups(draw, (40, 1), rate, correlation) for _ in range(5)), strict=True)
        )
        tail = compute_excess_tails(group_counts(successes, trials), np.full(5, rate), NOTHING)[0]
        false += tail <= 0.05
        binomial += stats.binom.sf(successes[:, 0].sum() - 1, trials[:, 0].sum(), rate) <= 0.05
    assert false <= stats.binom.isf(0.001, 400, 0.05)
    assert binomial > stats.binom.isf(0.001, 400, 0.05)


def test_interval_of_many_independent_trials_is_clopper_and_pearsons():
    trials = np.ones((5000, 2), np.int64)
    successes = np.zeros_like(trials)
    successes[:700, 0] = successes[:, 1] = 1
    low, high = estimate_ratio_interval(group_counts(successes, trials), np.full(2, 0.1), NOTHING, 20)
    exact = stats.binomtest(700, 5000).proportion_ci()
    assert (low[0], high[0]) == pytest.approx((exact.low * 10, exact.high * 10), rel=0.002)
    assert low[1] == pytest.approx(stats.binomtest(5000, 5000).proportion_ci().low * 10, rel=0.002)
    assert high[1] == pytest.approx(10)
    wider = estimate_ratio_interval(group_counts(successes, trials), np.full(2, 0.1), np.array(1e-4), 20)
    assert (wider[0] < low).all()
    assert (wider[1] > high).all()


def test_interval_holds_the_ratio():
    draw = np.random.default_rng(3)
    inside = 0
    for _ in range(300):
        successes, trials = draw_groups(draw, (40, 1), 0.3, 0.3)
        low, high = estimate_ratio_interval(group_counts(successes, trials), np.array([0.1]), NOTHING, 20)
        inside += low[0] <= 3 <= high[0]
    assert stats.binom.ppf(0.001, 300, 0.95) <= inside
