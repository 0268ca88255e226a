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
        # So that the store of many is not asked more than that of a few.
        self._period = max(_PERIOD_SECONDS, size / 32)
        self._show_life()

    def start(self) -> None:
        """Watch from now on; all processes have been made ready."""
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def end(self) -> None:
        """Watch no longer: this process leaves, of its own will."""
        self._ended.set()
        try:
            with self._lock:
                self._store.set(f"left/{self._rank}", "1")
        except (dist.DistError, RuntimeError):
            return  # whoever kept the store has left already

    def find_silent(self) -> list[int]:
        """Return the processes that show no life for a while, in which this one waits."""
        try:
            before = self._read_signs()
            time.sleep(2.5 * self._period)
            after = self._read_signs()
        except (dist.DistError, RuntimeError):
            return [_STORE_RANK]
        return [rank for rank, sign in after.items() if sign == before.get(rank)]

    def _run(self) -> None:
        signs: Mapping[int, str] = {}
        since, last = {}, time.monotonic()
        while not self._ended.wait(self._period):
            try:
                self._show_life()
                current = self._read_signs()
            except (dist.DistError, RuntimeError):
                return  # the collectives notice it, too
            now = time.monotonic()
            for rank, sign in current.items():
                # A pause of this process was no silence of the others.
                if sign != signs.get(rank) or now - last > 3 * self._period:
                    since[rank] = now
                if self._give_up and now - since[rank] > self._silent_seconds and not self._ended.is_set():
                    self._give_up(rank, now - since[rank])
            signs, last = current, now

    def _show_life(self) -> None:
        self._count += 1
        with self._lock:
            self._store.set(f"sign/{self._rank}", str(self._count))

    def _read_signs(self) -> dict[int, str]:
        """Return the newest sign of all others that have not left."""
        others = [rank for rank in range(self._size) if rank != self._rank]
        with self._lock:
            staying = [rank for rank in others if not self._store.check([f"left/{rank}"])]
            signs = self._store.multi_get([f"sign/{rank}" for rank in staying]) if staying else []
        return {rank: sign.decode() for rank, sign in zip(staying, signs, strict=True)}
