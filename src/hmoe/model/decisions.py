"""What a router decided in a forward pass, so that a recomputation of it (activation checkpointing) decides the same."""

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Decisions:
    """Decisions of one pass, in order; call `begin` before every pass, the first makes them, the others recall them.

    A recomputation may round otherwise, and a token between two experts would then go to another one than its gradient is of.
    """

    def __init__(self) -> None:
        self._kept: list[Any] = []
        self._next = 0

    def begin(self) -> None:
        """A pass begins."""
        self._next = 0

    def recall(self) -> Any:
        """The next decision of the first pass; None in the first pass itself."""
        if self._next == len(self._kept):
            return None
        self._next += 1
        return self._kept[self._next - 1]

    def keep(self, decision: Any) -> None:
        """Keep the next decision of the first pass."""
        self._kept.append(decision)
        self._next = len(self._kept)


def decide(decisions: Decisions | None, make: Callable[[], T]) -> T:
    """What `make` decides, or what it decided in the first pass."""
    if decisions is None:
        return make()
    decision: T | None = decisions.recall()
    if decision is None:
        decision = make()
        decisions.keep(decision)
    return decision
