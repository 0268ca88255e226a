"""Which process of a run no longer lives: each counts on in the store where they met, and looks at the others' counts.

For processes that nobody watches from outside, as those of torchrun or Slurm.
"""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]

_PERIOD_SECONDS = 2.0
_STORE_RANK = 0  # of the process whose end takes the store with it, where no launcher keeps it
_LEFT = "left"  # what a process counts to at last


class Watch:
    """Counts on, and tells when another process has stopped counting.

    Args:
        store: where all processes met.
        rank, size: of this process.
        silent_seconds: after which a process is given up.
        give_up: called from a thread, with the number of that process and its seconds; None: nobody asks.
    """

    def __init__(
        self, store: Store, rank: int, size: int, silent_seconds: float,
        give_up: Callable[[int, float], None] | None,
    ) -> None:  # fmt: skip
        # A connection of its own: the other one may be waiting for an answer when this one is asked.
        self._store: Any = store.clone()  # type: ignore[attr-defined]
        self._rank, self._size = rank, size
        self._silent_seconds, self._give_up = silent_seconds, give_up
        self._lock, self._ended, self._count = threading.Lock(), threading.Event(), 0
        # The more processes, the more seldom each asks.
        self._period = min(max(_PERIOD_SECONDS, size / 32), silent_seconds / 6)
        self._show_life()

    def start(self) -> None:
        """Watch from now on; all processes have been made ready."""
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def end(self) -> None:
        """Watch no longer: this process leaves, of its own will."""
        self._ended.set()
        # Whoever kept the store may have left already.
        self._ask(lambda: self._store.set(f"sign/{self._rank}", _LEFT), 2 * self._period)

    def find_silent(self) -> list[int]:
        """Return the processes that show no life for a while, in which this one waits."""
        before = self._ask(self._read_signs, 2 * self._period)
        time.sleep(2.5 * self._period)
        after = self._ask(self._read_signs, 2 * self._period)
        if before is None or after is None:
            return [_STORE_RANK]
        return [rank for rank, sign in after.items() if sign == before.get(rank)]

    def _run(self) -> None:
        signs: Mapping[int, str] = {}
        since: dict[int, float] = {}
        last = time.monotonic()
        while not self._ended.wait(self._period):
            begin = time.monotonic()
            current = self._ask(self._take_turn, self._silent_seconds)
            now = time.monotonic()
            if current is None:
                # At once: the store has gone, as the collectives notice, too. Else who keeps it was stopped.
                if now - begin >= self._silent_seconds and self._give_up and not self._ended.is_set():
                    self._give_up(_STORE_RANK, now - begin)
                return
            for rank, sign in current.items():
                # A pause of this process was no silence of the others.
                if sign != signs.get(rank) or begin - last > 3 * self._period:
                    since[rank] = now
                if self._give_up and now - since[rank] > self._silent_seconds and not self._ended.is_set():
                    self._give_up(rank, now - since[rank])
            signs, last = current, now

    def _take_turn(self) -> dict[int, str]:
        self._show_life()
        return self._read_signs()

    def _show_life(self) -> None:
        self._count += 1
        self._store.set(f"sign/{self._rank}", str(self._count))

    def _read_signs(self) -> dict[int, str]:
        """Return the newest sign of all others that have not left."""
        others = [rank for rank in range(self._size) if rank != self._rank]
        signs = [sign.decode() for sign in self._store.multi_get([f"sign/{rank}" for rank in others])]
        return {rank: sign for rank, sign in zip(others, signs, strict=True) if sign != _LEFT}

    def _ask(self, work: Callable[[], Any], seconds: float) -> Any:
        """Return what the store answers, None if it does not in time: it may keep a caller for good."""
        answers: list[Any] = []

        def call() -> None:
            try:
                with self._lock:
                    answers.append(work())
            except (dist.DistError, RuntimeError):
                return

        thread = threading.Thread(target=call, name="watch question", daemon=True)
        thread.start()
        thread.join(seconds)
        thread.join(2 * self._period)  # this process itself may have been stopped meanwhile
        return answers[0] if answers else None
