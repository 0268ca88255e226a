"""Batches on their way to a GPU, which a CPU stands for: `meta` memory is nowhere, so only the copy itself is looked at."""

import threading

import numpy as np
import pytest
import torch

from hmoe import DataError
from hmoe.train import feed
from hmoe.train.feed import Batch, Feed
from tests.train.test_step import setup, train_step

Pair = tuple[np.ndarray, np.ndarray]


class Source:
    """Batches that are told by their numbers; step 3 cannot be read."""

    def __init__(self) -> None:
        self.read: list[int] = []
        self.threads: set[str] = set()

    def __getitem__(self, step: int) -> Pair:
        if step == 3:
            raise DataError("shard: lost")
        self.read.append(step)
        self.threads.add(threading.current_thread().name)
        table = np.full((2, 5), step)
        return table[:, :-1], table[:, 1:] + 1


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What was put into pinned memory, which is ordinary memory here."""
    tables: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda table: (tables.append(table), table)[1])  # type: ignore[func-returns-value]
    return tables


@pytest.fixture
def gpu_feed(pinned: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> Feed:
    """A feed that believes in a GPU, whose memory is the CPU's."""
    made = Feed(Source(), "cuda")
    made._device = "cpu"
    return made


def test_a_cpu_gets_the_source_s_arrays_and_no_thread() -> None:
    before = threading.active_count()
    source = Source()
    plain = Feed(source, "cpu")
    assert all(isinstance(table, np.ndarray) for table in plain.take(0))
    assert source.read == [0]
    assert threading.active_count() == before
    plain.close()


def test_the_next_batch_is_made_ready_by_one_other_thread(gpu_feed: Feed, pinned: list[torch.Tensor]) -> None:
    source = gpu_feed._source
    assert isinstance(source, Source)
    for step in (0, 1, 2):
        tokens, targets = gpu_feed.take(step)
        assert tokens.tolist() == [[step] * 4] * 2
        assert targets.tolist() == [[step + 1] * 4] * 2
        assert step in source.read
    assert source.read == [0, 1, 2]  # each once, though step 1 and 2 were begun before they were asked for
    assert threading.current_thread().name not in source.threads
    assert len(source.threads) == 1
    assert [table.shape for table in pinned] == [(2, 2, 4)] * 3
    gpu_feed.close()


def test_another_step_than_the_next_may_be_asked_for(gpu_feed: Feed) -> None:
    assert [int(gpu_feed.take(step)[0][0, 0]) for step in (7, 0, 0)] == [7, 0, 0]
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
    batch: Pair = setup()[3]
    losses = []
    for form in (batch, tuple(torch.from_numpy(table) for table in batch)):
        config, model, optimizer, _ = setup()
        losses.append(train_step(model, optimizer, form, config, 0).terms)  # type: ignore[arg-type]
    assert losses[0] == losses[1]


def test_arrays_go_to_a_gpu_in_one_copy(pinned: list[torch.Tensor]) -> None:
    batch: Batch = (np.arange(8).reshape(4, 2), np.arange(8, 16).reshape(4, 2))
    parts = list(feed.split(batch, 2, torch.device("meta")))
    assert [tuple(table.shape) for part in parts for table in part] == [(2, 2)] * 4
    assert all(table.is_meta for part in parts for table in part)
    assert [table.flatten().tolist() for table in pinned] == [list(range(16))]
    with pytest.raises(RuntimeError, match="is invalid for input of size"):
        list(feed.split(batch, 3, torch.device("cpu")))
