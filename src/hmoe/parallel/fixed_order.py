"""Sums whose bits do not depend on who holds which part: of gradients in a fixed tree, of squares row by row."""

from collections.abc import Iterable, Sequence

import torch

Leaf = Sequence[torch.Tensor | None]


class TreeSum:
    """Adds up tensors in an order that depends on nothing but how many there are: neighbours first.

    The sum of 6 is ((1+2) + (3+4)) + (5+6). Of n it keeps log2(n) sums at a time.
    """

    def __init__(self) -> None:
        self._sums: list[tuple[int, Leaf]] = []  # (number of leaves, their sum), numbers falling

    def add(self, leaf: Leaf) -> None:
        """Take in the next tensors; None stands for one that is zero everywhere."""
        num_leaves = 1
        while self._sums and self._sums[-1][0] == num_leaves:
            leaf = _add_leaves(self._sums.pop()[1], leaf)
            num_leaves *= 2
        self._sums.append((num_leaves, leaf))

    def take(self) -> Leaf:
        """Return the sum of all, and begin anew."""
        _, total = self._sums.pop()
        while self._sums:
            total = _add_leaves(self._sums.pop()[1], total)
        return total


def _add_leaves(left: Leaf, right: Leaf) -> Leaf:
    return [b if a is None else a if b is None else a + b for a, b in zip(left, right, strict=True)]


def sum_row_squares(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of squares of each row (index of the first axis) in float64.

    A row's sum does not depend on how many other rows the tensor has; that of all at once would.
    """
    squares = tensor.detach().double().square()
    return squares if squares.ndim == 1 else squares.flatten(1).sum(1)


def measure_norm(row_squares: Iterable[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Return the square root of the sum of all rows' squares, given whole and in one order everywhere."""
    parts = list(row_squares)
    total: torch.Tensor = torch.cat(parts).sum().sqrt() if parts else torch.zeros(())
    return total.to(dtype)
