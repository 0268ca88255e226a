"""Experts in memory: never more than fit, never an old one, and those that are needed first stay."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hmoe.parallel.expert_cache import ExpertCache
from hmoe.parallel.expert_store import Key, Weights


class Shelf:
    """Where a test's experts lie: each is one number that says how often it was renewed."""

    def __init__(self, sizes: Sequence[int], waits: float = 0.0) -> None:
        self.sizes, self.waits = sizes, waits
        self.versions = [0] * len(sizes)
        self.fetched: list[Key] = []
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None

    def count_bytes(self, key: Key) -> int:
        assert isinstance(key, int)
        return self.sizes[key]

    def fetch(self, key: Key, renews: bool) -> Weights:
        assert isinstance(key, int)
        self.thread = threading.current_thread()
        time.sleep(self.waits)
        if self.error is not None:
            raise self.error
        self.fetched.append(key)
        self.versions[key] += renews
        return [torch.tensor(self.versions[key])]

    def renew(self, key: Key, weights: Weights | None) -> None:
        assert isinstance(key, int)
        self.versions[key] += 1
        if weights is not None:
            weights[0].add_(1)


@contextmanager
def opened(shelf: Shelf, most_bytes: int) -> Iterator[ExpertCache]:
    cache = ExpertCache(shelf, most_bytes)
    try:
        yield cache
    finally:
        cache.close()


def use(cache: ExpertCache, key: int) -> int:
    (version,) = cache.acquire(key)
    try:
        return int(version)
    finally:
        cache.release(key)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=6),
    st.lists(
        st.tuples(st.sampled_from(("use", "plan", "stale", "idle", "settle", "pin")), st.integers(0, 5)),
        max_size=40,
    ),
    st.integers(0, 10),
)
def test_who_asks_gets_the_newest_whatever_was_planned(
    sizes: list[int], deeds: list[tuple[str, int]], more: int
) -> None:
    shelf, expected = Shelf(sizes), [0] * len(sizes)
    most = sum(sorted(sizes)[-2:]) + more
    with opened(shelf, most) as cache:
        for deed, number in deeds:
            key = number % len(sizes)
            if deed == "use":
                assert use(cache, key) == expected[key]
            elif deed == "plan":
                cache.plan([*range(key, len(sizes)), *range(key)])
            elif deed == "stale":
                cache.settle()
                cache.mark_stale(range(key, len(sizes)))
                expected = [version + (i >= key) for i, version in enumerate(expected)]
            elif deed == "idle":
                cache.leave_idle([key])
            elif deed == "pin":
                cache.pin([key])
            else:
                cache.settle()
                assert shelf.versions == expected
            assert cache._num_bytes <= most
        cache.settle()
        assert shelf.versions == expected
        assert cache.counts.hits + cache.counts.misses == sum(deed == "use" for deed, _ in deeds)


def test_without_a_plan_the_least_recently_used_goes() -> None:
    shelf = Shelf([1, 1, 1, 1])
    with opened(shelf, 3) as cache:
        for key in (0, 1, 2, 0, 3):  # 3 takes the place of 1
            use(cache, key)
        assert shelf.fetched == [0, 1, 2, 3]
        for key in (0, 2, 3, 1):
            use(cache, key)
        assert shelf.fetched == [0, 1, 2, 3, 1]


def test_a_wide_expert_takes_the_place_of_several() -> None:
    shelf = Shelf([1, 1, 1, 3])
    with opened(shelf, 4) as cache:
        for key in (0, 1, 2, 3, 2, 0):
            use(cache, key)
        assert shelf.fetched == [0, 1, 2, 3, 0]


def test_what_is_needed_last_goes_first() -> None:
    """By turns forward and back, as a training step goes: the last ones of one way are the first of the other."""
    shelf = Shelf([1] * 6)
    with opened(shelf, 3) as cache:
        way = [0, 1, 2, 3, 4, 5, 5, 4, 3, 2, 1, 0]
        cache.plan(way)
        for key in way:
            use(cache, key)
    # Each once, and on the way back those that did not fit: no order could do with fewer.
    assert len(shelf.fetched) == 9


def test_experts_are_fetched_ahead_by_another_thread_as_far_as_they_fit() -> None:
    shelf = Shelf([1] * 5)
    with opened(shelf, 3) as cache:
        cache.plan(range(5))
        wait_for(lambda: len(shelf.fetched) == 3)
        time.sleep(0.02)
        assert shelf.fetched == [0, 1, 2]
        assert shelf.thread is not threading.current_thread()
        use(cache, 0)
        wait_for(lambda: len(shelf.fetched) == 4)
        assert shelf.fetched == [0, 1, 2, 3]
        assert (cache.counts.hits, cache.counts.misses) == (1, 0)


def test_pinned_experts_stay() -> None:
    shelf = Shelf([1] * 5)
    with opened(shelf, 3) as cache:
        cache.pin([0])
        for key in (0, 1, 2, 3, 4, 1, 2, 0):
            use(cache, key)
        assert shelf.fetched.count(0) == 1


def test_changes_of_idle_experts_are_applied_where_they_lie() -> None:
    shelf = Shelf([1] * 4)
    with opened(shelf, 2) as cache:
        cache.mark_stale(range(4))
        assert use(cache, 0) == 1
        cache.leave_idle([2, 3])
        wait_for(lambda: shelf.versions == [1, 0, 1, 1])
        assert shelf.fetched == [0]
        cache.settle()
        assert shelf.versions == [1, 1, 1, 1]


def test_tasks_are_done_first_and_only_so_many_wait() -> None:
    shelf, done = Shelf([1, 1]), []
    gate = threading.Event()
    with opened(shelf, 2) as cache:
        cache.submit(lambda: (gate.wait(5), done.append(1)), most_waiting=2)
        cache.plan([0, 1])
        cache.submit(lambda: done.append(len(shelf.fetched)), most_waiting=2)
        threading.Timer(0.02, gate.set).start()
        cache.submit(lambda: done.append(3), most_waiting=2)  # waits for the first
        assert done[0] == 1
        cache.settle()
        assert done == [1, 0, 3]  # nothing was fetched before the second


def test_what_changed_where_it_lies_is_read_anew() -> None:
    shelf = Shelf([1, 1])
    with opened(shelf, 2) as cache:
        assert use(cache, 0) == 0
        shelf.versions[0] = 7
        assert use(cache, 0) == 0
        cache.settle()
        cache.forget()
        assert use(cache, 0) == 7


@pytest.mark.parametrize("ask", ["acquire", "settle", "submit"])
def test_an_error_of_the_thread_is_raised_where_somebody_waits(ask: str) -> None:
    shelf = Shelf([1, 1])
    shelf.error = OSError("gone")
    with opened(shelf, 2) as cache:
        cache.mark_stale([0])
        if ask == "acquire":
            for _ in range(2):
                with pytest.raises(OSError, match="gone"):
                    cache.acquire(0)
            return
        cache.plan([0])
        wait_for(lambda: cache._error is not None)
        with pytest.raises(OSError, match="gone"):
            cache.settle() if ask == "settle" else cache.submit(lambda: None, 1)


def wait_for(condition: object) -> None:
    assert callable(condition)
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_change_that_comes_while_an_expert_is_fetched_is_not_lost() -> None:
    shelf = Shelf([1, 1], waits=0.05)
    with opened(shelf, 2) as cache:
        cache.plan([0])
        wait_for(lambda: cache._working == 0)
        cache.mark_stale([0, 1])  # the fetch has begun, of what is old
        cache.settle()
        assert shelf.versions == [1, 1]
        assert use(cache, 0) == 1


def test_closing_waits_for_one_thing_only_and_ends_all() -> None:
    shelf = Shelf([1] * 8, waits=0.02)
    cache = ExpertCache(shelf, 8)
    cache.plan(range(8))
    wait_for(lambda: bool(shelf.fetched))
    cache.close()
    assert len(shelf.fetched) < 8
    for ask in (lambda: cache.acquire(7), cache.settle, lambda: cache.submit(lambda: None, 1)):
        with pytest.raises(RuntimeError, match="were closed"):
            ask()


def test_what_could_not_be_fetched_is_told_to_who_asks_and_tried_again() -> None:
    shelf = Shelf([1, 1, 1])
    with opened(shelf, 2) as cache:
        shelf.error = OSError("for now")
        cache.plan([0, 1])  # ahead of need: nobody is told
        wait_for(lambda: len(cache._failed) == 2)
        for _ in range(2):
            with pytest.raises(OSError, match="for now"):
                cache.acquire(2)
        shelf.error = None
        assert [use(cache, key) for key in (2, 0, 1)] == [0, 0, 0]
        assert cache._num_bytes == 2


def test_what_somebody_waits_for_makes_no_room_before_it_is_taken() -> None:
    """The thread may be faster than who waits, and would fetch for the plan by turns with that, for ever."""
    shelf = Shelf([1, 1])
    with opened(shelf, 1) as cache:
        use(cache, 0)
        with cache._changed:  # as the thread finds it then
            cache._urgent = 0
            assert not cache._make_room(1, is_urgent=False)
            cache._urgent = None
            assert cache._make_room(1, is_urgent=False)
            cache._num_bytes -= 1
