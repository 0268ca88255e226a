"""What a router decided in a forward pass, so that its recomputation (checkpointing) decides the same."""

from collections.abc import Callable
from typing import Any, TypeVar

Decision = TypeVar("Decision")


class Decisions:
    """Decisions of a forward pass, in order: the first pass makes them, the others recall them.

    Call `begin` before every pass.

    A recomputation may round otherwise, and a token between two experts would then go to
    another one than its gradient is of.
    """

    def __init__(self) -> None:
        self._kept: list[Any] = []
        self._next = 0

    def begin(self) -> None:
        """Begin a pass: the next decision is the first one again."""
        self._next = 0

    def recall(self) -> Any:
        """Return the next decision of the first pass; None in the first pass itself."""
        # Nothing is kept beyond this decision: this is the first pass.
        if self._next == len(self._kept):
            return None
        self._next += 1
        return self._kept[self._next - 1]

    def keep(self, decision: Any) -> None:
        """Keep the next decision of the first pass."""
        self._kept.append(decision)
        # Past the end again, so that `recall` knows that the first pass still goes on.
        self._next = len(self._kept)


def recall_or_decide(decisions: Decisions | None, make: Callable[[], Decision]) -> Decision:
    """Return what `make` decides, or what it decided in the first pass."""
    if decisions is None:
        return make()
    decision: Decision | None = decisions.recall()
    if decision is None:
        decision = make()
        decisions.keep(decision)
    return decision
