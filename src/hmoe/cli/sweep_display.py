"""What a person sees of a sweep while it runs: a live table on a terminal, a line for each run that ends elsewhere."""

import os
import sys
import time
from typing import TYPE_CHECKING, Any

from hmoe.cli.output import print_note
from hmoe.units import format_duration

if TYPE_CHECKING:
    from hmoe.sweep.queue import SweepState

_LIVE_SECONDS = 1.0  # between drawings
_DUMB = ("dumb", "unknown")


class SweepDisplay:
    """Shows where a sweep stands, on standard error."""

    def __init__(self) -> None:
        self._live: Any = None
        self._begun, self._drawn, self._num_shown = time.monotonic(), 0.0, 0
        self._first_done: int | None = None
        self._first_shares: dict[
            str, float
        ] = {}  # of runs when they were seen first: a resumed one is not at 0

    def __enter__(self) -> "SweepDisplay":
        if sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in _DUMB:
            from rich.console import Console
            from rich.live import Live

            console = Console(file=sys.stderr, highlight=False, markup=False, emoji=False)
            self._live = Live(console=console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, state: "SweepState") -> None:
        """Show a state; called several times a second."""
        if self._first_done is None:
            self._first_done = len(state.rows) - len(state.ended)
        for name in state.ended[self._num_shown :]:
            self._num_shown += 1
            self.print_line(_describe_run(state, name, self._first_done + self._num_shown))
        now = time.monotonic()
        if self._live is not None and now - self._drawn >= _LIVE_SECONDS:
            self._drawn = now
            self._live.update(self._lay_out(state), refresh=True)

    def print_line(self, text: str) -> None:
        """Print a line that stays, above what is live."""
        if self._live is None:
            print_note(text)
        else:
            self._live.console.print(text, soft_wrap=True)

    def _lay_out(self, state: "SweepState") -> Any:
        from rich.table import Table

        table = Table(box=None, pad_edge=False, title_justify="left", title=self._describe(state))
        for title in ("run", "done", "loss"):
            table.add_column(title, justify="left" if title == "run" else "right")
        for name, child in state.running.items():
            share, loss = child.read_progress()
            table.add_row(name, f"{int(100 * share)}%", "" if loss is None else f"{loss:.4f}")
        for run in state.waiting[: max(0, 12 - len(state.running))]:
            table.add_row(run.name, "waits", "")
        return table

    def _describe(self, state: "SweepState") -> str:
        done, total = len(state.rows), len(state.runs)
        failed = f", {state.num_failed} failed" if state.num_failed else ""
        shares = {name: child.read_progress()[0] for name, child in state.running.items()}
        left = total - done - sum(shares.values())
        self._first_shares = shares | self._first_shares
        shares |= dict.fromkeys(state.ended, 1.0)
        progressed = sum(share - self._first_shares.get(name, 0.0) for name, share in shares.items())
        seconds = time.monotonic() - self._begun
        eta = f", ETA {format_duration(seconds * left / progressed)}" if progressed > 0.05 else ""
        return f"{done} of {total} runs{failed}{eta}"


def _describe_run(state: "SweepState", name: str, place: int) -> str:
    """Return a line about a run that has ended; `place` is its number among them."""
    row = state.rows[name][-1]
    head = f"{place} of {len(state.runs)}: {row.run}"
    if not row.is_finished:
        return f"{head}: {row.status}"
    seconds = "" if row.seconds is None else f", {format_duration(row.seconds)}"
    return f"{head}: validation loss {row.validation_loss:.4f} after {row.step:,} steps{seconds}"
