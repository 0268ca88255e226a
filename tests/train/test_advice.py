from pathlib import Path
from typing import Any

import pytest

from hmoe.config.run import DataConfig, TrainConfig
from hmoe.data.batches import Batches
from hmoe.data.prepare import PrepareRequest, prepare_data
from hmoe.data.shards import Index
from hmoe.train.advice import DataReads, describe_short_documents


@pytest.fixture
def index(corpus_jsonl: Path, tmp_path: Path) -> Index:
    return prepare_data(PrepareRequest([str(corpus_jsonl)], "bytes", validation=0.1), tmp_path / "data")


def make_batches(index: Index, **settings: Any) -> Batches:
    values = {"path": "x", "sequence_length": 16, "batch_tokens": 64, **settings}
    return Batches(index, DataConfig.model_validate(values), seed=0)


def budget(**budgets: Any) -> TrainConfig:
    return TrainConfig.model_validate({"save_every": 1, **budgets})


def test_a_budget_that_reads_the_data_more_than_four_times_is_named_at_the_start(index: Index) -> None:
    total = index.tokens_of("train")
    few, many = (budget(tokens=times * total) for times in (4, 5))
    assert DataReads(make_batches(index)).check_budget(few) == ""
    reads = DataReads(make_batches(index))
    assert reads.check_budget(many) == (
        f"the budget of {5 * total:,} tokens reads the data's {total:,} training tokens 5.0 times; "
        "beyond about four times it brings little (Muennighoff et al. 2023)"
    )
    assert reads.update(5 * total) == ""  # said already
    assert DataReads(make_batches(index)).check_budget(budget(steps=5 * total // 64 + 1)) != ""
    assert DataReads(make_batches(index)).check_budget(budget(steps=1, tokens=5 * total)) == ""


def test_other_budgets_are_followed_until_it_happens(index: Index) -> None:
    total, reads = index.tokens_of("train"), DataReads(make_batches(index))
    assert reads.check_budget(budget(seconds=1)) == ""
    assert reads.check_budget(budget(tokens=9 * total, flops=1e9)) == ""  # FLOPs may end it earlier
    assert [bool(reads.update(times * total // 2)) for times in range(7, 12)] == [
        False,
        False,
        True,
        False,
        False,
    ]
    assert reads.count_epochs(3 * total) == pytest.approx(3)


def test_a_run_that_goes_on_hears_of_it_once(index: Index) -> None:
    total = index.tokens_of("train")
    before, after = (DataReads(make_batches(index), times * total) for times in (3, 5))
    assert before.check_budget(budget(tokens=6 * total)) == ""
    assert before.update(6 * total).startswith(
        f"the data's {total:,} training tokens were read 4 times by now"
    )
    assert after.update(6 * total) == ""


def test_with_weights_the_domain_that_is_read_most_counts(index: Index) -> None:
    code = sum(shard.tokens for shard in index.of("train", "code"))
    reads = DataReads(make_batches(index, weights={"code": 3, "prose": 1}))
    assert reads.check_budget(budget(tokens=4 * code)) == ""
    assert f"reads domain code's {code:,} training tokens 7.5 times" in reads.check_budget(
        budget(tokens=10 * code)
    )
    alone = DataReads(make_batches(index, weights={"code": 1, "prose": 0}))
    assert alone.count_epochs(2 * code) == pytest.approx(2)


def test_documents_shorter_than_half_a_sequence_in_the_mean_are_named(index: Index) -> None:
    shards = index.of("train")
    mean = sum(shard.tokens for shard in shards) / sum(shard.documents for shard in shards)
    assert describe_short_documents(index, int(1.9 * mean)) == ""
    line = describe_short_documents(index, int(4 * mean))
    assert f"{mean:,.0f} tokens in the mean" in line
    assert "holds about 4" in line
    lengths = []  # what the line claims, counted
    for shard in shards:
        stops = (index.tokens(shard) == index.separator).nonzero()[0]
        lengths += [stops[0] + 1, *(stops[1:] - stops[:-1])]
    assert sum(length < 2 * mean for length in lengths) > len(lengths) / 2
