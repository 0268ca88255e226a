import numpy as np
import pytest

from hmoe.statistics.linear_cka import compare_representations, compute_linear_cka


def _slow_cka(a, b):
    """By HSIC, as Kornblith et al. define it, entry by entry."""
    n = len(a)

    def hsic(x, y):
        centring = np.eye(n) - 1 / n
        first, second = centring @ (x @ x.T) @ centring, y @ y.T
        return sum(first[i, j] * second[i, j] for i in range(n) for j in range(n)) / (n - 1) ** 2

    return hsic(a, b) / np.sqrt(hsic(a, a) * hsic(b, b))


@pytest.mark.parametrize("seed", range(50))
def test_equals_slow_loops(seed):
    draw = np.random.default_rng(seed)
    rows, columns = draw.integers(2, 12, 2)
    a = draw.normal(3, 1, (rows, columns))
    b = draw.normal(size=(rows, draw.integers(1, 12)))
    if a.shape[1] == b.shape[1]:
        b += a
    if rows > max(a.shape[1], b.shape[1]):
        b[:, 0] += a[:, 0]
    assert compute_linear_cka(a, b) == pytest.approx(_slow_cka(a, b), rel=1e-9)


def test_rotation_shift_and_scale_change_nothing():
    draw = np.random.default_rng(0)
    a = draw.normal(size=(40, 6))
    rotation = np.linalg.qr(draw.normal(size=(6, 6)))[0]
    assert compute_linear_cka(a, -3 * a @ rotation + 5) == pytest.approx(1)
    stretched = a * np.array([10, 1, 1, 1, 1, 1])
    assert compute_linear_cka(a, stretched) < 0.7


def test_many_at_once_and_what_does_not_vary():
    draw = np.random.default_rng(0)
    tables = [draw.normal(size=(9, width)) for width in (2, 20, 4)] + [np.full((9, 3), 0.1)]
    ckas = compare_representations(tables)
    for i in range(4):
        for j in range(4):
            if 3 in (i, j):
                assert np.isnan(ckas[i, j])
            else:
                assert ckas[i, j] == pytest.approx(_slow_cka(tables[i], tables[j]), rel=1e-9)
    assert np.isnan(compute_linear_cka(np.ones((1, 4)), np.zeros((1, 4))))
    assert compare_representations([]).shape == (0, 0)


def test_single_precision_keeps_five_digits():
    draw = np.random.default_rng(0)
    a = draw.normal(size=(300, 8)) + 100
    b = a + draw.normal(size=(300, 8))
    exact = compute_linear_cka(a, b)
    assert compute_linear_cka(a.astype(np.float32), b.astype(np.float32)) == pytest.approx(exact, rel=1e-4)
