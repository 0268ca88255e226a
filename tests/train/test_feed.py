"""Batches on their way to a GPU, for which a CPU stands.

`meta` memory is nowhere, so only the copy itself is looked at.
"""

import threading

import numpy as np
import pytest
import torch

from hmoe import DataError
from hmoe.data.batches import MicroBatch, cut_batch
from hmoe.train.feed import Feed, place_parts
from hmoe.train.step import train_step
from tests.train.test_step import setup

META = torch.device("meta")


class Source:
    """Batches of two parts that are told by their numbers; step 3 cannot be read."""

    def __init__(self) -> None:
        self.read: list[int] = []
        self.threads: set[str] = set()

    def parts(self, step: int) -> list[MicroBatch[np.ndarray]]:
        if step == 3:
            raise DataError("shard: lost")
        self.read.append(step)
        self.threads.add(threading.current_thread().name)
        table = np.full((2, 5), step)
        return cut_batch(table[:, :-1], table[:, 1:] + 1, 2)


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What was put into pinned memory, which is ordinary memory here."""
    tables: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda table: (tables.append(table), table)[1])  # type: ignore[func-returns-value]
    return tables


@pytest.fixture
def gpu_feed(pinned: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> Feed:
    """A feed that believes in a GPU, whose memory is the CPU's."""
    feed = Feed(Source(), "cuda")
    feed._device = torch.device("cpu")
    return feed


def test_a_cpu_gets_the_source_s_arrays_and_no_thread() -> None:
    before = threading.active_count()
    source = Source()
    plain = Feed(source, "cpu")
    arrays = source.parts(7)
    source.parts = lambda step: arrays  # type: ignore[method-assign]
    for part, array in zip(plain.take(7), arrays, strict=True):
        assert part.index == array.index
        assert part.tokens_BL.data_ptr() == array.tokens_BL.ctypes.data, "nothing is copied"
    assert source.read == [7]
    assert threading.active_count() == before
    plain.close()


def test_the_next_batch_is_made_ready_by_one_other_thread(gpu_feed: Feed, pinned: list[torch.Tensor]) -> None:
    source = gpu_feed._source
    assert isinstance(source, Source)
    for step in (0, 1, 2):
        parts = gpu_feed.take(step)
        assert [part.index for part in parts] == [0, 1]
        assert [part.tokens_BL.tolist() for part in parts] == [[[step] * 4]] * 2
        assert [part.targets_BL.tolist() for part in parts] == [[[step + 1] * 4]] * 2
        assert step in source.read
    assert source.read == [0, 1, 2]  # each once, though step 1 and 2 were begun before they were asked for
    assert threading.current_thread().name not in source.threads
    assert len(source.threads) == 1
    assert [table.shape for table in pinned] == [(2, 2, 1, 4)] * 3
    gpu_feed.close()


def test_another_step_than_the_next_may_be_asked_for(gpu_feed: Feed) -> None:
    assert [int(gpu_feed.take(step)[0].tokens_BL[0, 0]) for step in (7, 0, 0)] == [7, 0, 0]
    gpu_feed.close()


def test_what_goes_wrong_is_raised_by_the_step_that_needs_it(gpu_feed: Feed) -> None:
    gpu_feed.take(2)
    gpu_feed._ahead[3].exception()  # it has failed by now
    gpu_feed.take(1)
    gpu_feed.take(2)
    with pytest.raises(DataError, match="shard: lost"):
        gpu_feed.take(3)
    gpu_feed.close()


def test_closing_ends_the_thread(gpu_feed: Feed) -> None:
    gpu_feed.take(0)
    assert any(thread.name.startswith("hmoe-feed") for thread in threading.enumerate())
    gpu_feed.close()
    assert not any(thread.name.startswith("hmoe-feed") for thread in threading.enumerate())


def test_arrays_and_tensors_are_one_batch() -> None:
    arrays = setup()[3]
    terms = []
    for batch in (arrays, tuple(torch.from_numpy(table) for table in arrays)):
        config, model, optimizer, _ = setup()
        terms.append(
            train_step(
                model, optimizer, cut_batch(batch[0], batch[1], config.data.num_micro_batches), config, 0
            ).terms
        )
    assert terms[0] == terms[1]


def test_arrays_go_to_a_gpu_in_one_copy(pinned: list[torch.Tensor]) -> None:
    parts = cut_batch(np.arange(8).reshape(4, 2), np.arange(8, 16).reshape(4, 2), 2)[::-1]
    placed = place_parts(parts, META)
    assert [part.index for part in placed] == [1, 0]
    assert [tuple(table.shape) for part in placed for table in (part.tokens_BL, part.targets_BL)] == [
        (2, 2)
    ] * 4
    assert all(table.is_meta for part in placed for table in (part.tokens_BL, part.targets_BL))
    assert [table.flatten().tolist() for table in pinned] == [
        [4, 5, 6, 7, 12, 13, 14, 15, 0, 1, 2, 3, 8, 9, 10, 11]
    ]
