"""Weights of some experts in memory, the rest elsewhere: fetched ahead in the order of need by one thread.

plan: expert 4, expert 7, expert 2, ...    what will be needed, in this order, as far as it is known
memory: as many experts as fit, by width   who makes room is the one that is needed last; of those that are not
                                           in the plan the one that was used least recently
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from hmoe.parallel.expert_store import CacheCounts, ExpertStore, Key, Weights

_LATER = 1 << 60  # place in the plan of what is not in it


@dataclass
class _Block:
    """An expert in memory.

    Attributes:
        wait: waits until the device no longer reads it.
    """

    weights: Weights
    num_bytes: int
    last_use: int = 0
    users: int = 0
    wait: Callable[[], None] | None = None


class ExpertCache:
    """Keeps weights of experts in memory up to a limit; `acquire` waits for what is not there.

    One caller uses it, one thread of its own fetches.

    Args:
        store: where weights come from.
        most_bytes: of weights in memory; at least of the two widest experts that follow each other.
    """

    def __init__(self, store: ExpertStore, most_bytes: int) -> None:
        self._store, self._most_bytes = store, most_bytes
        self.counts = CacheCounts()
        self._blocks: dict[Key, _Block] = {}
        self._num_bytes = self._clock = 0
        self._plan: list[Key] = []
        self._uses: dict[Key, deque[int]] = {}  # places in the plan that are still to come
        self._next = 0  # place in the plan from which on nothing was looked at
        self._stale: dict[Key, None] = {}  # experts for which a change waits, in the order of the changes
        self._idle: dict[Key, None] = {}  # of these, those that nobody will ask for soon
        self._pinned: frozenset[Key] = frozenset()
        self._tasks: deque[Callable[[], None]] = deque()
        self._urgent: Key | None = None
        self._working: Key | None = None
        self._num_running = 0  # tasks
        self._settling = self._closed = False
        self._error: BaseException | None = None
        # Experts that could not be fetched, until somebody asks for them.
        self._failed: dict[Key, Exception] = {}
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="hmoe-experts", daemon=True)
        self._thread.start()

    # What the caller asks for.

    def acquire(self, key: Key) -> Weights:
        """Return an expert's weights, which stay until `release`."""
        begun = None
        with self._changed:
            self._failed.pop(key, None)  # ahead of need: another try
            while not self._is_ready(key):
                self._raise_error()
                if (error := self._failed.pop(key, None)) is not None:
                    self._urgent = None
                    raise error
                begun = begun or perf_counter()
                self._urgent = key
                self._changed.notify_all()
                self._changed.wait()
            self._urgent = None
            block = self._blocks[key]
            if uses := self._uses.get(key):
                self._next = max(self._next, uses.popleft() + 1)
            self._clock += 1
            block.users, block.last_use = block.users + 1, self._clock
            if begun is None:
                self.counts.hits += 1
            else:
                self.counts.misses += 1
                self.counts.wait_seconds += perf_counter() - begun
            return block.weights

    def __contains__(self, key: Key) -> bool:
        """Tell whether an expert is in memory, whoever changes that meanwhile."""
        return key in self._blocks

    def release(self, key: Key, wait: Callable[[], None] | None = None) -> None:
        """Give an expert back; `wait` waits until the device no longer reads it."""
        with self._changed:
            block = self._blocks[key]
            block.users, block.wait = block.users - 1, wait
            self._changed.notify_all()

    def plan(self, keys: Iterable[Key]) -> None:
        """Say which experts will be needed from now on, in their order; what was said before is forgotten."""
        with self._changed:
            self._plan, self._uses, self._next = list(keys), {}, 0
            for place, key in enumerate(self._plan):
                self._uses.setdefault(key, deque()).append(place)
            self._changed.notify_all()

    def pin(self, keys: Iterable[Key]) -> None:
        """Say which experts stay in memory once they are there, if anything else can make room."""
        with self._changed:
            self._pinned = frozenset(keys)

    def mark_stale(self, keys: Iterable[Key]) -> None:
        """Say for which experts a change waits: each is renewed before anybody gets it."""
        with self._changed:
            self._stale |= dict.fromkeys(keys)
            self._changed.notify_all()

    def leave_idle(self, keys: Iterable[Key]) -> None:
        """Say which experts nobody will ask for soon: their changes can be applied where they lie."""
        with self._changed:
            self._idle |= {key: None for key in keys if key in self._stale}
            self._changed.notify_all()

    def submit(self, task: Callable[[], None], most_waiting: int) -> None:
        """Let the thread do something before all else; waits while more than some tasks are not done."""
        with self._changed:
            while len(self._tasks) + self._num_running >= most_waiting:
                self._raise_error()
                self._changed.wait()
            self._raise_error()
            self._tasks.append(task)
            self._changed.notify_all()

    def settle(self) -> None:
        """Wait until all tasks are done and no change waits."""
        with self._changed:
            self._settling = True
            self._changed.notify_all()
            try:
                while self._tasks or self._num_running or self._stale or self._working is not None:
                    self._raise_error()
                    self._changed.wait()
            finally:
                self._settling = False
            self._raise_error()

    def forget(self) -> None:
        """Drop all weights: they were changed where they came from. Nobody may hold any, and no change wait."""
        with self._changed:
            self._plan, self._uses, self._next = [], {}, 0
            while self._working is not None:
                self._raise_error()
                self._changed.wait()
            for block in self._blocks.values():
                if block.wait is not None:
                    block.wait()
            self._blocks.clear()
            self._num_bytes = 0

    def close(self) -> None:
        """End the thread, after what it is doing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _is_ready(self, key: Key) -> bool:
        return key in self._blocks and key not in self._stale and self._working != key

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error.with_traceback(None)  # which would grow with each that is told
        if self._closed:
            raise RuntimeError("experts that lie elsewhere were closed, nobody fetches them any more")

    # What the thread does.

    def _work(self) -> None:
        try:
            while (job := self._wait_for_job()) is not None:
                job()
        except BaseException as error:  # raised where somebody waits
            with self._changed:
                self._error, self._closed = error, True
                self._changed.notify_all()

    def _wait_for_job(self) -> Callable[[], None] | None:
        """Return what to do next; None: nothing ever."""
        with self._changed:
            while not self._closed and (job := self._choose_job()) is None:
                self._changed.wait()
            return None if self._closed else job

    def _choose_job(self) -> Callable[[], None] | None:
        """Return what to do next, None for nothing: tasks, what somebody waits for, what will be needed, the rest."""
        if self._tasks:
            self._num_running += 1
            task = self._tasks.popleft()
            return lambda: self._run_task(task)
        if self._urgent is not None and not self._is_ready(self._urgent):
            return self._prepare(self._urgent, is_urgent=True)
        while self._next < len(self._plan):
            key = self._plan[self._next]
            if not self._is_ready(key) and key not in self._failed:
                if (job := self._prepare(key, is_urgent=False)) is not None:
                    return job
                break  # no room before somebody has used what is there
            self._next += 1
        return self._choose_renewal()

    def _choose_renewal(self) -> Callable[[], None] | None:
        waiting = self._stale if self._settling else self._idle
        if (key := next(iter(waiting), None)) is None:
            return None
        self._working, block = key, self._blocks.get(key)
        return lambda: self._renew(key, block)

    def _prepare(self, key: Key, is_urgent: bool) -> Callable[[], None] | None:
        """Return what makes an expert ready, None if there is no room for it."""
        block = self._blocks.get(key)
        if block is None and not self._make_room(key, is_urgent):
            return None
        self._working = key
        if block is not None:
            return lambda: self._renew(key, block)
        # Known now: a change that comes while it is fetched is applied afterwards.
        renews = key in self._stale
        return lambda: self._fetch(key, renews)

    def _make_room(self, key: Key, is_urgent: bool) -> bool:
        """Return whether there is room for an expert, after those who are needed later have made it."""
        needed = self._store.count_bytes(key)
        while self._num_bytes + needed > self._most_bytes:
            # Not one that was fetched for somebody who waits, and has not taken it yet.
            victims = [k for k, block in self._blocks.items() if not block.users and k != self._urgent]
            victim = max(victims, key=self._rate_victim, default=None)
            if victim is None or (self._find_place(victim) <= self._next and not is_urgent):
                return False
            block = self._blocks.pop(victim)
            self._num_bytes -= block.num_bytes
            if block.wait is not None:
                block.wait()
        self._num_bytes += needed
        return True

    def _find_place(self, key: Key) -> int:
        if key in self._pinned:
            return -1
        uses = self._uses.get(key)
        return uses[0] if uses else _LATER

    def _rate_victim(self, key: Key) -> tuple[int, int]:
        return self._find_place(key), -self._blocks[key].last_use

    def _fetch(self, key: Key, renews: bool) -> None:
        try:
            weights = self._store.fetch(key, renews)
        except Exception as error:
            if renews:  # a change that was applied in part: nobody may go on from there
                raise
            with self._changed:
                self._failed[key] = error
                self._num_bytes -= self._store.count_bytes(key)
                self._finish(key, renewed=False)
            return
        with self._changed:
            self._blocks[key] = _Block(weights, self._store.count_bytes(key), self._clock)
            self._finish(key, renews)

    def _renew(self, key: Key, block: _Block | None) -> None:
        if block is not None and block.wait is not None:
            block.wait()
        self._store.renew(key, None if block is None else block.weights)
        with self._changed:
            self._finish(key, renewed=True)

    def _finish(self, key: Key, renewed: bool) -> None:
        if renewed:
            self._stale.pop(key, None)
            self._idle.pop(key, None)
        self._working = None
        self._changed.notify_all()

    def _run_task(self, task: Callable[[], Any]) -> None:
        task()
        with self._changed:
            self._num_running -= 1
            self._changed.notify_all()
