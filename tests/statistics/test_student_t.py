"""Student's t against scipy."""

import pytest

from hmoe.errors import ConfigError
from hmoe.statistics.student_t import compute_t_quantile, compute_t_tail

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 8, 31, 200])
def test_tails_and_quantiles_are_those_of_scipy(degrees: int) -> None:
    for t in (0, 0.1, -0.7, 1.5, 3, -12, 60):
        assert compute_t_tail(t, degrees) == pytest.approx(2 * stats.t.sf(abs(t), degrees), abs=1e-13)
    for tail in (1, 0.5, 0.05, 0.05 / 7, 1e-4):
        expected = stats.t.isf(tail / 2, degrees)
        assert compute_t_quantile(tail, degrees) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_infinite_and_refused_values() -> None:
    assert compute_t_tail(float("inf"), 2) == 0
    for tail in (0, -0.1, 1.1):
        with pytest.raises(ConfigError, match=f"tail = {tail}: must be above 0 and at most 1"):
            compute_t_quantile(tail, 2)
    with pytest.raises(ConfigError, match="degrees = 0"):
        compute_t_tail(1, 0)
