import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmoe import ConfigError, DataError
from hmoe.config.run import DataConfig
from hmoe.data.batches import Batches, count_bytes_per_token, cut_batch, load_first_sequences, load_validation
from hmoe.data.order import permute_indices
from hmoe.data.prepare import PrepareRequest, prepare_data
from hmoe.data.shards import WITHIN, Index


def config(**changes: object) -> DataConfig:
    return DataConfig.model_validate({"path": "x", "sequence_length": 16, "batch_tokens": 64, **changes})


@pytest.fixture
def index(corpus_jsonl: Path, tmp_path: Path) -> Index:
    return prepare_data(
        PrepareRequest([str(corpus_jsonl)], "bytes", validation=0.1, segment_bytes=4000), tmp_path / "out"
    )


@given(size=st.integers(1, 3000), key=st.integers(0, 2**40))
@settings(deadline=None)
def test_permute_is_a_permutation(size: int, key: int) -> None:
    order = permute_indices(np.arange(size, dtype=np.uint64), size, key)
    assert sorted(order.tolist()) == list(range(size))
    some = np.array([size // 2, 0, size - 1], dtype=np.uint64)
    assert permute_indices(some, size, key).tolist() == order[[size // 2, 0, size - 1]].tolist()


def test_permute_is_pinned() -> None:
    """The order of every run rests on these numbers."""
    assert permute_indices(np.arange(10, dtype=np.uint64), 10, 1).tolist() == PINNED


PINNED = [7, 2, 1, 3, 8, 0, 5, 6, 4, 9]


def test_permute_looks_random_and_huge_sizes_need_no_memory() -> None:
    order = permute_indices(np.arange(10_000, dtype=np.uint64), 10_000, "k").astype(float)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05
    assert 0 <= permute_indices(np.array([10**15], dtype=np.uint64), 10**16, 0)[0] < 10**16


def test_targets_are_one_ahead_and_batches_are_functions_of_the_step(index: Index) -> None:
    a, b = Batches(index, config(), 3), Batches(index, config(), 3)
    for step in (5, 0, 17, 5):
        x, y = a[step]
        assert x.shape == y.shape == (4, 16)
        assert np.array_equal(x[:, 1:], y[:, :-1])
        assert all(np.array_equal(p, q) for p, q in zip((x, y), b[step], strict=True))
    assert not np.array_equal(Batches(index, config(), 4)[0][0], a[0][0])


def test_parts_are_the_batch_whoever_takes_them(index: Index) -> None:
    """Whole, or each process its own: the same micro-batches with the same numbers."""
    batches = Batches(index, config(batch_tokens=128, micro_batches=4), 3)
    for step in (0, 9):
        parts = batches.parts(step)
        assert [part.index for part in parts] == [0, 1, 2, 3]
        of_ranks = [part for rank in (1, 0) for part in batches.parts(step, range(rank, 4, 2))]
        for others in (cut_batch(*batches[step], 4), sorted(of_ranks, key=lambda part: part.index)):
            for part, other in zip(parts, others, strict=True):
                assert part.index == other.index
                assert np.array_equal(part.tokens_BL, other.tokens_BL)
                assert np.array_equal(part.targets_BL, other.targets_BL)
    assert batches.parts(0, []) == []


def test_a_batch_is_cut_into_equal_parts_only() -> None:
    table = np.zeros((4, 2), np.int64)
    assert len(cut_batch(table, table, 2)) == 2
    with pytest.raises(ValueError, match="cannot reshape"):
        cut_batch(table, table, 3)


def test_an_epoch_visits_every_sequence_once_then_reshuffles(index: Index) -> None:
    batches = Batches(index, config(batch_tokens=16), 0)
    size = batches.pools[0].size
    seen = [batches[step][0].tobytes() for step in range(2 * size)]
    windows = [batches.pools[0].window(i)[:-1].tobytes() for i in range(size)]
    assert sorted(seen[:size]) == sorted(windows) == sorted(seen[size:])
    assert seen[:size] != seen[size:]


def test_order_does_not_depend_on_the_batch_size(index: Index) -> None:
    """The same samples in the same order, so that ranks and micro-batches may cut batches as they like."""
    small, large = Batches(index, config(batch_tokens=16), 0), Batches(index, config(batch_tokens=128), 0)
    assert np.array_equal(
        np.concatenate([small[i][0] for i in range(16)]), np.concatenate([large[i][0] for i in range(2)])
    )


def test_windows_cross_shards_and_domains_and_cover_all_tokens(index: Index) -> None:
    """Window n holds tokens n * L to n * L + L of all shards laid end to end."""
    batches = Batches(index, config(), 0)
    stream = np.concatenate([index.tokens(shard) for shard in index.of("train")]).astype(np.int64)
    (pool,) = batches.pools
    assert len(index.of("train")) > 2
    assert pool.size == (len(stream) - 1) // 16
    for place in range(pool.size):
        assert np.array_equal(pool.window(place), stream[16 * place : 16 * place + 17])
    rest = len(stream) - 16 * pool.size - 1
    assert 0 < rest < 16
    line = (
        f"{rest} of {len(stream):,} training tokens are in no sequence of 16: {rest} at the end of the data"
    )
    assert batches.describe_reach() == line


def test_weighted_domains_are_streams_of_their_own(index: Index) -> None:
    batches = Batches(index, config(weights={"prose": 1.0}), 0)
    stream = np.concatenate([index.tokens(shard) for shard in index.of("train", "prose")])
    (pool,) = batches.pools
    assert pool.size == (len(stream) - 1) // 16
    assert np.array_equal(pool.window(pool.size - 1), stream[16 * (pool.size - 1) :][:17])
    code = sum(shard.tokens for shard in index.of("train", "code"))
    assert f"{code:,} in domains without a weight (code)" in batches.describe_reach()


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(
        b"".join(np.ascontiguousarray(array).astype("<i8").tobytes() for array in arrays)
    ).hexdigest()


def test_runs_begun_by_earlier_versions_keep_their_shards_and_their_order(index: Index) -> None:
    """Recorded with the version whose windows ended with their shard."""
    assert index.fingerprint == "c7c73c53c568ed18b96cd1d69215e38057aa39f9ecb5c19ee79a2a200025b83e"
    for weights, expected in (
        (None, "d60c2c819e7b3b03ab8a315685c019d414b16f7218346554e766aae0ed0fcd60"),
        ({"prose": 3.0, "code": 1.0}, "a0012c02dad30478f39ac457d956a54a52913703124d159439a0923d6310b0d8"),
    ):
        batches = Batches(index, config(weights=weights), 3, WITHIN)
        assert digest(*(array for step in range(12) for array in batches[step])) == expected
        assert (
            digest(
                *(array for step in range(12) for array in Batches(index, config(weights=weights), 3)[step])
            )
            != expected
        )
    held_out = "61efbcb1be940aef530371cc7ac331f03cda72e378e42c554137fd8786e7a09d"
    assert digest(load_validation(index, 16, 9, WITHIN)[0]) == held_out
    shorter = "0850321dee0589ad7bfc8cebbcdb7639d3f8be1562787edc7c67975ec7a3a072"
    assert digest(load_validation(index, 100_000, 9, WITHIN)[0]) == shorter


def test_windows_of_the_earlier_rule_stay_inside_a_shard(index: Index) -> None:
    batches = Batches(index, config(), 0, WITHIN)
    pool = batches.pools[0]
    lost = sum((s.tokens - 1) % 16 for s in index.of("train"))
    assert f"{lost:,} at the end of shards" in batches.describe_reach()
    assert pool.size == sum((s.tokens - 1) // 16 for s in index.of("train"))
    first = index.tokens(index.of("train")[0])
    assert np.array_equal(pool.window(0), first[:17])
    assert np.array_equal(pool.window(1), first[16:33])


def test_domain_weights_are_met_exactly(index: Index) -> None:
    batches = Batches(index, config(weights={"prose": 3.0, "code": 1.0}), 0)
    names = sorted(["prose", "code"])
    chosen = batches._choose(np.arange(10_000))
    counts = np.bincount([pool for pool, _ in chosen])
    assert dict(zip(names, counts.tolist(), strict=True)) == {"code": 2500, "prose": 7500}
    for pool in (0, 1):
        windows = [w for p, w in chosen if p == pool]
        size = batches.pools[pool].size
        assert sorted(windows[:size]) != windows[:size]
        assert len(set(windows)) == min(size, len(windows))
    only = Batches(index, config(weights={"prose": 1.0, "code": 0.0}), 0)
    assert len(only.pools) == 1


def test_weights_of_the_data_folder_are_the_default(corpus_jsonl: Path, tmp_path: Path) -> None:
    prepared = prepare_data(
        PrepareRequest([str(corpus_jsonl)], "bytes", weights={"prose": 1.0, "code": 9.0}), tmp_path / "w"
    )
    chosen = Batches(prepared, config(), 0)._choose(np.arange(10_000))
    assert np.bincount([pool for pool, _ in chosen]).tolist() == [9000, 1000]


def test_validation_is_fixed_and_spread(index: Index) -> None:
    (few, targets), (many, _) = load_validation(index, 16, 5), load_validation(index, 16, 10**6)
    assert few.shape == (5, 16)
    assert len(many) == (sum(s.tokens for s in index.of("valid")) - 1) // 16
    assert np.array_equal(few, load_validation(index, 16, 5)[0])
    assert np.array_equal(few[:, 1:], targets[:, :-1])
    assert np.array_equal(few, many[:: len(many) // 5][:5]) or len(many) % 5
    text = sum(s.text_bytes for s in index.of("valid"))
    assert count_bytes_per_token(index, "valid") == text / sum(s.tokens for s in index.of("valid"))


def test_a_validation_split_shorter_than_a_sequence_still_counts(index: Index) -> None:
    assert load_validation(index, 10**6, 8)[0].shape == (1, sum(s.tokens for s in index.of("valid")) - 1)


def test_first_sequences_are_those_that_a_split_begins_with(
    index: Index, corpus_jsonl: Path, tmp_path: Path
) -> None:
    def read(index: Index, split: str) -> list[int]:
        return [int(token) for shard in index.of(split) for token in index.tokens(shard)]

    split, tokens_BL = load_first_sequences(index, 16, 50)
    assert (split, tokens_BL.shape) == ("valid", (3, 16))
    assert tokens_BL.flatten().tolist() == read(index, "valid")[:48]
    assert load_first_sequences(index, 100, 50)[1].tolist() == [read(index, "valid")[:50]]  # a part of one
    short = load_first_sequences(index, 10**6, 10**6)[1]
    assert short.tolist() == [read(index, "valid")[:-1]]  # shorter than a sequence
    whole = prepare_data(PrepareRequest([str(corpus_jsonl)], "bytes", validation=0.0), tmp_path / "whole")
    split, tokens_BL = load_first_sequences(whole, 16, 512)
    assert (split, tokens_BL.flatten().tolist()) == ("train", read(whole, "train")[:512])


def test_impossible_requests_are_named(index: Index) -> None:
    with pytest.raises(DataError, match="sequence_length = 100000 needs 100001"):
        Batches(index, config(sequence_length=100_000, batch_tokens=100_000), 0)
    with pytest.raises(ConfigError, match=r"data\.weights\.poetry: no such domain; the data has code, prose"):
        Batches(index, config(weights={"poetry": 1.0}), 0)


def test_large_vocabularies_use_four_bytes(tmp_path: Path) -> None:
    from hmoe.data.shards import choose_token_dtype

    assert (choose_token_dtype(65536), choose_token_dtype(65537)) == ("<u2", "<u4")
