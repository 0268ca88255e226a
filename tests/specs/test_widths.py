import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmoe import ConfigError, arithmetic, equal, geometric, hybrid

WIDTHS = {"arithmetic": arithmetic, "geometric": geometric}


def test_widths_of_the_paper() -> None:
    assert arithmetic(12288, 8) == (864, 1056, 1248, 1440, 1632, 1824, 2016, 2208)
    assert arithmetic(32768, 8) == (2304, 2816, 3328, 3840, 4352, 4864, 5376, 5888)
    assert arithmetic(65536, 16, ratio=47 / 17) == tuple(range(2176, 6017, 256))
    assert hybrid(12288, 8) == (768, 768, 768, 768, 1536, 1536, 3072, 3072)
    assert geometric(255, 8) == (1, 2, 4, 8, 16, 32, 64, 128)
    assert equal(12288, 8) == (1536,) * 8


@given(
    name=st.sampled_from(sorted(WIDTHS)),
    n=st.integers(1, 64),
    units=st.integers(1, 10**6),
    multiple=st.sampled_from([1, 2, 16, 32, 96, 128]),
    ratio=st.floats(1, 1000),
)
def test_sum_is_exact_ascending_and_aligned(
    name: str, n: int, units: int, multiple: int, ratio: float
) -> None:
    total = max(units, n) * multiple
    widths = WIDTHS[name](total, n, ratio=ratio, multiple=multiple)
    assert sum(widths) == total
    assert list(widths) == sorted(widths)
    assert min(widths) >= multiple
    assert all(width % multiple == 0 for width in widths)


@given(n=st.integers(2, 64), ratio=st.floats(1, 20))
def test_ratio_is_that_of_largest_to_smallest(n: int, ratio: float) -> None:
    for rule in WIDTHS.values():
        widths = rule(10**9, n, ratio=ratio)
        assert widths[-1] / widths[0] == pytest.approx(ratio, rel=1e-4)


def test_arithmetic_has_equal_steps_and_geometric_equal_ratios() -> None:
    widths = arithmetic(10**9, 7, ratio=5)
    steps = [b - a for a, b in itertools.pairwise(widths)]
    assert max(steps) - min(steps) <= 2
    widths = geometric(10**9, 7, ratio=5)
    ratios = [b / a for a, b in itertools.pairwise(widths)]
    assert max(ratios) / min(ratios) == pytest.approx(1, rel=1e-6)


@given(total=st.integers(1, 10**6), n=st.integers(1, 100))
def test_equal_differs_by_at_most_one(total: int, n: int) -> None:
    if total < n:
        with pytest.raises(ConfigError):
            equal(total, n)
    else:
        widths = equal(total, n)
        assert sum(widths) == total
        assert max(widths) - min(widths) <= 1


def test_thousands_of_experts_take_no_time() -> None:
    """Exact fractions once took minutes; run in well under a second, this would hang the suite otherwise."""
    for rule in WIDTHS.values():
        assert sum(rule(4096 * 16, 4096, ratio=128)) == 4096 * 16


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: arithmetic(100, 8, multiple=16), "nearest is 128"),
        (lambda: arithmetic(7, 8), "at least 8"),
        (lambda: arithmetic(100, 0), "at least 1"),
        (lambda: arithmetic(100, 4, ratio=0.5), "must be from 1"),
        (lambda: geometric(100, 4, ratio=float("nan")), "must be from 1"),
        (lambda: hybrid(100, 6), "multiple of 4"),
        (lambda: hybrid(100, 0), "nearest is 4"),
        (lambda: arithmetic(128, 8, multiple=0), "multiple 0"),
    ],
)
def test_errors_name_the_nearest_choice(call: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        call()  # type: ignore[operator]
