"""Batches of a run, each a pure function of (seed, step): nothing to save, nothing depends on processes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from hmoe.config.run import DataConfig
from hmoe.data.order import permute_indices
from hmoe.data.packing import Pool, Tokens
from hmoe.data.shards import WITHIN, Index
from hmoe.errors import ConfigError, DataError

_BLOCK_SAMPLES = 10_000  # over which domain weights are met exactly
_MOST_NAMES = 5  # domains that a line names


Table = TypeVar("Table")  # a NumPy array, or a tensor once it is on the way to a device


@dataclass(frozen=True)
class MicroBatch(Generic[Table]):
    """One canonical part of a step's batch: gradients add up over parts, router statistics are of one.

    Attributes:
        index: which part of the step it is, from 0; random numbers of a step
            depend on it, never on a process.
        tokens_BL: inputs.
        targets_BL: the same one token ahead.
    """

    index: int
    tokens_BL: Table
    targets_BL: Table


def cut_batch(tokens_BL: Any, targets_BL: Any, num_parts: int) -> list[MicroBatch[Any]]:
    """Return the parts of a batch of arrays or tensors, as views; `num_parts` must divide its sequences."""
    tables = (table_BL.reshape(num_parts, -1, table_BL.shape[1]) for table_BL in (tokens_BL, targets_BL))
    return [MicroBatch(index, *part) for index, part in enumerate(zip(*tables, strict=True))]


class Batches:
    """Training batches: `batches[step]` is (tokens_BL, targets_BL), `batches.parts(step)` its micro-batches.

    Every epoch visits each sequence of a domain once, in an order keyed by (seed, domain, epoch). With domain
    weights every 10,000 samples hold each domain in exact proportion; without, all domains are one pool.

    Args:
        index: of the data folder.
        config: sequence length, batch size, weights.
        seed: of the order.
        packing: how shards are cut into sequences (see `hmoe.data.packing`); None:
            as new runs on this data have it.

    Raises:
        DataError: if a domain has fewer tokens than one sequence.
        ConfigError: for weights of unknown domains.
    """

    def __init__(self, index: Index, config: DataConfig, seed: int, packing: str | None = None) -> None:
        self.index, self.config, self.seed = index, config, seed
        self.packing = packing or index.packing
        weights = config.weights or index.weights
        known = sorted({shard.domain for shard in index.of("train")})
        for domain in weights or {}:
            if domain not in known:
                raise ConfigError(f"data.weights.{domain}: no such domain; the data has {', '.join(known)}")
        # Without weights all domains are one pool, whose name in the keys of the order is empty.
        names = [name for name in sorted(weights) if weights[name] > 0] if weights else [""]
        length = config.sequence_length
        self.pools = [Pool(index, index.of("train", name or None), length, self.packing) for name in names]
        for name, pool in zip(names, self.pools, strict=True):
            if pool.size == 0:
                raise DataError(
                    f"{index.folder}: training split{f' of {name}' if name else ''} has at most "
                    f"{pool.longest_tokens} tokens in a row, "
                    f"data.sequence_length = {length} needs {length + 1}"
                )
        share = np.cumsum([weights[name] for name in names]) if weights else np.ones(1)
        for name in names:
            if weights and weights[name] * _BLOCK_SAMPLES < share[-1]:
                raise ConfigError(
                    f"data.weights.{name} = {weights[name]}: below 1/{_BLOCK_SAMPLES} of the sum; "
                    "raise it or set it to 0"
                )
        self.names = names
        self.undrawn = [name for name in known if weights and name not in names]  # domains without a weight
        self.stops = np.round(share / share[-1] * _BLOCK_SAMPLES).astype(np.int64)

    def __getitem__(self, step: int) -> tuple[Tokens, Tokens]:
        """Return (tokens_BL, targets_BL) of a step's whole batch."""
        size = self.config.batch_sequences
        return self._read(np.arange(step * size, (step + 1) * size))

    def parts(self, step: int, indices: Sequence[int] | None = None) -> list[MicroBatch[Tokens]]:
        """Return the `config.num_micro_batches` canonical micro-batches of a step, or those of `indices`.

        How many there are, and what is in each, does not depend on the number of
        processes: a process takes some of them.
        """
        num_parts, size = self.config.num_micro_batches, self.config.batch_sequences
        sample_PB = np.arange(step * size, (step + 1) * size).reshape(num_parts, -1)
        return [
            MicroBatch(index, *self._read(sample_PB[index]))
            for index in (range(num_parts) if indices is None else indices)
        ]

    def describe_reach(self) -> str:
        """Return a line that counts the training tokens that no batch can hold; "" if there are none."""
        total = sum(shard.tokens for shard in self.index.of("train"))
        undrawn = sum(shard.tokens for shard in self.index.of("train") if shard.domain in self.undrawn)
        rest = sum(pool.unreached_tokens for pool in self.pools)
        where = "shards" if self.packing == WITHIN else "domains" if len(self.pools) > 1 else "the data"
        parts = [f"{rest:,} at the end of {where}"] if rest else []
        if undrawn:
            more = f" and {len(self.undrawn) - _MOST_NAMES} more" if len(self.undrawn) > _MOST_NAMES else ""
            parts.append(
                f"{undrawn:,} in domains without a weight ({', '.join(self.undrawn[:_MOST_NAMES])}{more})"
            )
        if not parts:
            return ""
        return (
            f"{rest + undrawn:,} of {total:,} training tokens are in no sequence of {self.config.sequence_length}: "
            + ", ".join(parts)
        )

    def _read(self, sample_B: Tokens) -> tuple[Tokens, Tokens]:
        """Return (tokens_BL, targets_BL) of sample numbers, which count on from step to step."""
        # A window holds one token more than a sequence, so inputs and targets are two views of one array.
        rows = [self.pools[pool].window(window) for pool, window in self._choose(sample_B)]
        batch = np.stack(rows)
        return batch[:, :-1], batch[:, 1:]

    def _choose(self, sample_B: Tokens) -> list[tuple[int, int]]:
        """Return (pool, window) of each sample number."""
        if len(self.pools) == 1:
            return [(0, self._window(0, int(sample))) for sample in sample_B]
        chosen = []
        for sample in sample_B:
            # slots of a block:  [0 .. stops[0]) pool 0  [stops[0] .. stops[1]) pool 1 ...
            # A block's samples visit them in random order: each pool gets its exact share of every block.
            block, place = divmod(int(sample), _BLOCK_SAMPLES)
            slot = int(
                permute_indices(
                    np.array([place], dtype=np.uint64), _BLOCK_SAMPLES, self.seed, "block", block
                )[0]
            )
            pool = int(np.searchsorted(self.stops, slot, side="right"))
            first = int(self.stops[pool - 1]) if pool else 0
            draw = block * (int(self.stops[pool]) - first) + slot - first
            chosen.append((pool, self._window(pool, draw)))
        return chosen

    def _window(self, pool: int, draw: int) -> int:
        """Return the window of a pool that comes after `draw` others, in the order of its epoch."""
        epoch, place = divmod(draw, self.pools[pool].size)
        return int(
            permute_indices(
                np.array([place], dtype=np.uint64), self.pools[pool].size, self.seed, self.names[pool], epoch
            )[0]
        )


def describe_weights(index: Index) -> str:
    """Return a line on what the weights of a data folder leave out and allow; "" without weights."""
    if not index.weights:
        return ""
    tokens: dict[str, int] = {}
    for shard in index.of("train"):
        tokens[shard.domain] = tokens.get(shard.domain, 0) + shard.tokens
    drawn = [name for name in tokens if index.weights.get(name)]
    shortest = min(drawn, key=tokens.__getitem__, default="")
    rest = sum(tokens.values()) - sum(tokens[name] for name in drawn)
    undrawn = f"; {rest:,} tokens are in domains without a weight, which are never drawn" if rest else ""
    longest = tokens.get(shortest, 1) - 1
    return f"sequences may be up to {longest:,} tokens long: {shortest} is the shortest domain with a weight{undrawn}"


def describe_validation(index: Index, length: int, num_sequences: int, packing: str | None = None) -> str:
    """Return how many sequences `load_validation` gives for the same arguments; "" if there are none."""
    num_windows = _make_pool(index, "valid", length, packing).size
    chosen = min(num_sequences, num_windows)
    return f"{chosen:,} held-out sequence{'s' * (chosen != 1)}" if chosen else ""


def load_validation(
    index: Index, length: int, num_sequences: int, packing: str | None = None
) -> tuple[Tokens, Tokens]:
    """Return (tokens_BL, targets_BL) of up to `num_sequences` validation sequences, spread over the split.

    They are the same every time. A split shorter than one sequence gives one shorter sequence, an empty one
    none. `packing` is the run's.
    """
    pool = _make_pool(index, "valid", length, packing)
    if pool.size == 0:
        return np.zeros((0, length), np.int64), np.zeros((0, length), np.int64)
    places = np.linspace(0, pool.size, min(num_sequences, pool.size), endpoint=False).astype(np.int64)
    windows = np.stack([pool.window(int(place)) for place in places])
    return windows[:, :-1], windows[:, 1:]


def load_first_sequences(
    index: Index, length: int, num_tokens: int, packing: str | None = None
) -> tuple[str, Tokens]:
    """Return a split and the sequences it begins with, as many as fit into `num_tokens`, at least a part of one.

    The split is the validation one, or where there is none the training one; a split shorter than one sequence
    gives one shorter sequence. They are the same every time. `packing` is the run's.
    """
    split, pool = "valid", _make_pool(index, "valid", length, packing)
    if pool.size == 0:
        split, pool = "train", _make_pool(index, "train", length, packing)
    num_windows = min(pool.size, max(1, num_tokens // length))
    return split, np.stack([pool.window(place)[:-1][:num_tokens] for place in range(num_windows)])


def _make_pool(index: Index, split: str, length: int, packing: str | None) -> Pool:
    """Return the sequences of a split; of a split shorter than one sequence, one shorter sequence."""
    shards = [shard for shard in index.of(split) if shard.tokens > 1]
    packing = packing or index.packing
    pool = Pool(index, shards, length, packing)
    return Pool(index, shards, pool.longest_tokens - 1, packing) if shards and pool.size == 0 else pool


def count_bytes_per_token(index: Index, split: str) -> float:
    """Return the UTF-8 bytes of text per token of a split, separators counted as tokens."""
    shards = index.of(split)
    return sum(shard.text_bytes for shard in shards) / max(sum(shard.tokens for shard in shards), 1)
