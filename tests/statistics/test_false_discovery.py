import numpy as np
import pytest
from scipy import stats

from hmoe.errors import ConfigError
from hmoe.statistics.false_discovery import adjust_false_discovery


def test_q_is_that_of_scipy():
    draw = np.random.default_rng(0)
    for size in (1, 2, 7, 300):
        tails = draw.uniform(0, 1, size) ** 3
        tails[-1] = tails[0]
        np.testing.assert_allclose(adjust_false_discovery(tails), stats.false_discovery_control(tails))


def test_large_p_can_be_left_out():
    tails = np.random.default_rng(1).uniform(0, 1, 1000) ** 4
    q = stats.false_discovery_control(tails)
    small = tails <= 0.05
    some = adjust_false_discovery(tails[small], len(tails))
    assert ((some <= 0.05) == (q[small] <= 0.05)).all()
    discoveries = some <= 0.05
    assert 50 < discoveries.sum() < small.sum()
    np.testing.assert_allclose(some[discoveries], q[small][discoveries])


def test_none_and_too_many():
    assert adjust_false_discovery(np.zeros(0), 5).shape == (0,)
    with pytest.raises(ConfigError, match="num_tests = 1: must be at least 2"):
        adjust_false_discovery(np.array([0.1, 0.2]), 1)
