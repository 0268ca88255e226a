"""Reading that is shared gives what one process reads."""

import pytest

from hmoe.errors import DataError, PeerError
from hmoe.parallel.workers import ONE_WORKER, share_work
from tests.threads import ThreadWorkers, work_together


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("number", [0, 1, 4, 7])
def test_results_are_in_order_in_every_process_and_each_item_is_done_once(size: int, number: int) -> None:
    done: list[int] = []

    def work(item: int) -> list[float]:
        done.append(item)
        return [item / 3]

    results = work_together(size, lambda workers: share_work(workers, range(number), work))
    assert results == [[[item / 3] for item in range(number)]] * size
    assert sorted(done) == list(range(number))


def test_one_process_shares_with_nobody() -> None:
    assert share_work(ONE_WORKER, "abc", lambda item: (item, 1)) == [("a", 1), ("b", 1), ("c", 1)]
    assert ONE_WORKER.gather_values(3) == [3]


def test_an_error_of_one_process_is_one_of_all() -> None:
    def work(workers: ThreadWorkers) -> object:
        def fail_on_three(item: int) -> int:
            if item == 3:
                raise DataError("item 3")
            return item

        return share_work(workers, range(6), fail_on_three)

    first, second = work_together(2, work)
    assert isinstance(first, PeerError)
    assert isinstance(second, DataError)
