"""Exact sums in four bytes each, of which few are large."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from hmoe.analyze.traced_text import Ints

_BITS = 32


class WideSums:
    """A table of whole numbers below 2**63 that takes four bytes a cell.

    The table holds what is left of each sum modulo 2**32, and how often 2**32 goes into it stands in a dictionary of
    the cells that are so large. Floating-point numbers of four bytes would be rounded from 2**24 on, and a variance,
    which is a small difference of such sums, would be off by up to its own size.

    Args:
        shape: of the table.

    Attributes:
        rest: sums modulo 2**32, the whole sums where all are smaller.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.rest = np.zeros(shape, np.uint32)
        self._overflows: dict[int, int] = {}  # by place in the flat table

    def add(self, cells: Ints, values: Ints) -> None:
        """Add whole numbers from 0 to 2**62 to cells of the flat table, each cell at most once."""
        flat = self.rest.reshape(-1)
        sums = flat[cells] + values.astype(np.int64)
        flat[cells] = sums & ((1 << _BITS) - 1)
        for place in np.flatnonzero(sums >> _BITS):
            cell = int(cells[place])
            self._overflows[cell] = self._overflows.get(cell, 0) + int(sums[place] >> _BITS)

    def __getitem__(self, row: int) -> Ints:
        """Return the sums of a row, such as a layer, counted from 0."""
        if row < 0:
            raise IndexError(f"row {row}: must be at least 0")
        sums: Ints = self.rest[row].astype(np.int64)
        for cell, count in self._overflows.items():
            if cell // sums.size == row:
                sums.reshape(-1)[cell % sums.size] += count << _BITS
        return sums

    def list_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the sums in two parts, by name."""
        overflows = np.array(sorted(self._overflows.items()), np.int64).reshape(-1, 2)
        return {"rest": self.rest, "overflows": overflows}

    def restore_arrays(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over what `list_arrays` gave."""
        self.rest[...] = arrays["rest"]
        self._overflows = dict(arrays["overflows"].tolist())
