"""The validations that a run's metrics.jsonl tells of: the newest, the best, and when the loss began to rise."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

LOSS, BITS, TOKENS = "validation_loss", "validation_bits_per_byte", "validation_tokens"


@dataclass(frozen=True)
class Validation:
    """One validation of a run.

    Attributes:
        step: after which it was measured.
        loss: in nats per token.
        bits_per_byte: of text.
        tokens: that were predicted; None in rows of earlier versions.
    """

    step: int
    loss: float
    bits_per_byte: float
    tokens: int | None = None


def read_validation(row: dict[str, Any]) -> Validation | None:
    """Return the validation of a row of metrics.jsonl; None where it has none, or one that is no number."""
    loss, bits, tokens = (_get_number(row, name) for name in (LOSS, BITS, TOKENS))
    if loss is None or bits is None:
        return None
    return Validation(row["step"], loss, bits, None if tokens is None else int(tokens))


def _get_number(row: dict[str, Any], name: str) -> float | None:
    """Return a number of a row; None where it has none, as rows may have been changed by hand."""
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
        newest = read_validation(row)
        if newest is None:
            return ""
        self.newest = newest
        # Of other text, since train.eval_sequences changed: a loss of its own, from which others rise.
        if self.best is None or newest.loss < self.best.loss or newest.tokens != self.best.tokens:
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
