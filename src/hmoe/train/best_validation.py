"""The best validation of a run and its newest, and when the loss began to rise."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Validation:
    """One validation of a run.

    Attributes:
        step: after which it was measured.
        loss: in nats per token.
        bits_per_byte: of text.
    """

    step: int
    loss: float
    bits_per_byte: float


def get_number(row: dict[str, Any], name: str) -> float | None:
    """Return a number of a row of a log; None where it has none, as rows may have been changed by hand."""
    value: Any = row.get(name)
    return value if type(value) in (int, float) and math.isfinite(value) else None


class BestValidation:
    """Follows the validations of a run through the rows of its metrics.jsonl.

    Attributes:
        best: the one with the smallest loss, of equal ones the earliest; None before the first.
        newest: the last one; None before the first.
        rises: how many were above the best in a row, up to the newest.
    """

    def __init__(self, rows: Iterable[dict[str, Any]] = ()) -> None:
        self.best: Validation | None = None
        self.newest: Validation | None = None
        self.rises = 0
        self._warned = False
        for row in rows:
            self.update(row)

    def update(self, row: dict[str, Any]) -> str:
        """Take in a row, with or without a validation; return a warning once two in a row were above the best."""
        loss, bits = (get_number(row, f"validation_{name}") for name in ("loss", "bits_per_byte"))
        if loss is None or bits is None:
            return ""
        newest = Validation(row["step"], loss, bits)
        self.newest = newest
        if self.best is None or newest.loss < self.best.loss:
            self.best, self.rises = newest, 0
            return ""
        self.rises = self.rises + 1 if newest.loss > self.best.loss else 0
        if self.rises < 2 or self._warned:
            return ""
        self._warned = True
        return (
            f"validation loss rose from {self.best.loss:.4f} (best, step {self.best.step}) to {newest.loss:.4f} "
            f"at step {newest.step}: it overfits, or optim.lr is too high"
        )
