"""Processes that nobody watches from outside: each learns which of the others has stopped."""

import signal
import subprocess
import sys
import time

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from hmoe.parallel.watch import Watch

PERIOD_SECONDS = 0.05


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    monkeypatch.setattr("hmoe.parallel.watch._PERIOD_SECONDS", PERIOD_SECONDS)
    return TCPStore("127.0.0.1", 0, is_master=True, use_libuv=True)


def wait(seconds: float = 20 * PERIOD_SECONDS) -> None:
    time.sleep(seconds)


def test_one_that_stops_counting_is_given_up_and_one_that_leaves_is_not(store: TCPStore) -> None:
    given_up: list[tuple[int, float]] = []
    # The last one never counts: it was stopped as soon as it had joined.
    watches = [Watch(store, rank, 4, 0.5, lambda *told: given_up.append(told)) for rank in range(4)]
    for watch in watches[:3]:
        watch.start()
    wait()
    watches[2].end()
    wait()
    for watch in watches[:2]:
        watch.end()
    assert {rank for rank, _ in given_up} == {3}
    assert all(seconds > 0.5 for _, seconds in given_up)


def test_who_is_silent_can_be_asked(store: TCPStore) -> None:
    watches = [Watch(store, rank, 3, 60, None) for rank in range(3)]
    for watch in watches[:2]:
        watch.start()
    assert watches[0].find_silent() == [2]
    watches[1].end()
    assert watches[0].find_silent() == [2]
    watches[2].end()
    assert watches[0].find_silent() == []
    watches[0].end()


def test_a_stopped_process_that_keeps_the_store_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hmoe.parallel.watch._PERIOD_SECONDS", PERIOD_SECONDS)
    script = """
import time
from torch.distributed import TCPStore
store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
store.set("sign/0", "1")
print(store.port, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as keeper:
        assert keeper.stdout is not None
        port = int(keeper.stdout.readline())
        given_up: list[tuple[int, float]] = []
        store = TCPStore("127.0.0.1", port, is_master=False)
        watch = Watch(store, 1, 2, 0.6, lambda *told: given_up.append(told))
        keeper.send_signal(signal.SIGSTOP)
        watch.start()
        wait(1.5)
        assert watch.find_silent() == [0]
        watch.end()  # which ends, too
        keeper.kill()
    assert [rank for rank, _ in given_up] == [0]
