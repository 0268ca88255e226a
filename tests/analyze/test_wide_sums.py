"""Sums beyond four bytes, against Python's whole numbers."""

import numpy as np

from hmoe.analyze.wide_sums import WideSums


def test_sums_are_exact_whatever_their_size() -> None:
    generator = np.random.default_rng(0)
    sums, expected = WideSums((3, 4, 5)), [0] * 60
    for _ in range(200):
        cells = generator.choice(60, 20, replace=False)
        values = generator.integers(0, 2 ** generator.integers(1, 45), 20)
        sums.add(cells, values)
        for cell, value in zip(cells.tolist(), values.tolist(), strict=True):
            expected[cell] += value
    assert max(expected) > 2**44
    assert [int(value) for row in range(3) for value in sums[row].ravel()] == expected
    again = WideSums((3, 4, 5))
    again.restore_arrays(sums.list_arrays())
    sums.add(np.arange(60), np.full(60, 2**33))  # the restored one has numbers of its own
    assert [int(value) for row in range(3) for value in again[row].ravel()] == expected


def test_a_cell_takes_four_bytes() -> None:
    assert sum(table.nbytes for table in WideSums((3, 4, 5)).list_arrays().values()) == 240
