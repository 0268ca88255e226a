"""Batch n as a pure function of (seed, n): nothing to save, nothing that depends on ranks or workers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from hmoe.config.run import DataConfig
from hmoe.data.order import permute
from hmoe.data.packing import Pool, Tokens
from hmoe.data.shards import WITHIN, Index
from hmoe.errors import ConfigError, DataError

_BLOCK = 10_000  # samples over which domain weights are met exactly
_NAMED = 5  # domains that a line names


Table = TypeVar("Table")  # a NumPy array, or a tensor once it is on the way to a device


@dataclass(frozen=True)
class MicroBatch(Generic[Table]):
    """One canonical part of a step's batch: what a gradient is accumulated over, and router statistics are taken of.

    Attributes:
        index: which part of the step it is, from 0; random numbers of a step depend on it, never on a process.
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
    """Training batches: `batches[step]` is (tokens_BL, targets_BL), `batches.parts(step)` the same in micro-batches.

    Every epoch visits each sequence of a domain once, in an order keyed by (seed, domain, epoch). With domain weights
    every 10,000 samples hold each domain in exact proportion; without, all domains are one pool.

    Args:
        index: of the data folder.
        config: sequence length, batch size, weights.
        seed: of the order.
        packing: how shards are cut into sequences (see `hmoe.data.packing`); None: as new runs on this data have it.

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
        names = [name for name in sorted(weights) if weights[name] > 0] if weights else [""]
        length = config.sequence_length
        self.pools = [Pool(index, index.of("train", name or None), length, self.packing) for name in names]
        for name, pool in zip(names, self.pools, strict=True):
            if pool.size == 0:
                raise DataError(
                    f"{index.folder}: training split{f' of {name}' if name else ''} has at most {pool.longest_tokens} tokens "
                    f"in a row, data.sequence_length = {length} needs {length + 1}"
                )
        share = np.cumsum([weights[name] for name in names]) if weights else np.ones(1)
        for name in names:
            if weights and weights[name] * _BLOCK < share[-1]:
                raise ConfigError(
                    f"data.weights.{name} = {weights[name]}: below 1/{_BLOCK} of the sum; raise it or set it to 0"
                )
        self.names = names
        self.undrawn = [name for name in known if weights and name not in names]  # domains without a weight
        self.stops = np.round(share / share[-1] * _BLOCK).astype(np.int64)

    def __getitem__(self, step: int) -> tuple[Tokens, Tokens]:
        size = self.config.batch_sequences
        return self._read(np.arange(step * size, (step + 1) * size))

    def parts(self, step: int, indices: Sequence[int] | None = None) -> list[MicroBatch[Tokens]]:
        """Return the canonical micro-batches of a step, `config.num_micro_batches` of them; only those of `indices` are read.

        How many there are, and what is in each, does not depend on the number of processes: a process takes some of them.
        """
        num_parts, size = self.config.num_micro_batches, self.config.batch_sequences
        sample_PB = np.arange(step * size, (step + 1) * size).reshape(num_parts, -1)
        return [
            MicroBatch(index, *self._read(sample_PB[index]))
            for index in (range(num_parts) if indices is None else indices)
        ]

    def describe_reach(self) -> str:
        """A line that counts the training tokens that no batch can hold; "" where every token is reached."""
        total = sum(shard.tokens for shard in self.index.of("train"))
        undrawn = sum(shard.tokens for shard in self.index.of("train") if shard.domain in self.undrawn)
        rest = sum(pool.unreached_tokens for pool in self.pools)
        where = "shards" if self.packing == WITHIN else "domains" if len(self.pools) > 1 else "the data"
        parts = [f"{rest:,} at the end of {where}"] if rest else []
        if undrawn:
            more = f" and {len(self.undrawn) - _NAMED} more" if len(self.undrawn) > _NAMED else ""
            parts.append(f"{undrawn:,} in domains without a weight ({', '.join(self.undrawn[:_NAMED])}{more})")
        if not parts:
            return ""
        return (
            f"{rest + undrawn:,} of {total:,} training tokens are in no sequence of {self.config.sequence_length}: "
            + ", ".join(parts)
        )

    def _read(self, sample_B: Tokens) -> tuple[Tokens, Tokens]:
        """(tokens_BL, targets_BL) of sample numbers."""
        rows = [self.pools[pool].window(window) for pool, window in self._choose(sample_B)]
        batch = np.stack(rows)
        return batch[:, :-1], batch[:, 1:]

    def _choose(self, sample_B: Tokens) -> list[tuple[int, int]]:
        """(pool, window) of each sample number."""
        if len(self.pools) == 1:
            return [(0, self._window(0, int(sample))) for sample in sample_B]
        chosen = []
        for sample in sample_B:
            block, place = divmod(int(sample), _BLOCK)
            slot = int(permute(np.array([place], dtype=np.uint64), _BLOCK, self.seed, "block", block)[0])
            pool = int(np.searchsorted(self.stops, slot, side="right"))
            first = int(self.stops[pool - 1]) if pool else 0
            chosen.append((pool, self._window(pool, block * (int(self.stops[pool]) - first) + slot - first)))
        return chosen

    def _window(self, pool: int, number: int) -> int:
        epoch, place = divmod(number, self.pools[pool].size)
        return int(
            permute(np.array([place], dtype=np.uint64), self.pools[pool].size, self.seed, self.names[pool], epoch)[0]
        )


def describe_weights(index: Index) -> str:
    """What the weights of a data folder leave out, and the longest sequence that they allow; "" without weights."""
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


def validation(index: Index, length: int, num_sequences: int, packing: str | None = None) -> tuple[Tokens, Tokens]:
    """(tokens_BL, targets_BL) of the same up to `num_sequences` validation sequences every time, spread over the split.

    A split shorter than one sequence gives one shorter sequence, an empty one none. `packing` is the run's.
    """
    shards = [shard for shard in index.of("valid") if shard.tokens > 1]
    if not shards:
        return np.zeros((0, length), np.int64), np.zeros((0, length), np.int64)
    packing = packing or index.packing
    pool = Pool(index, shards, length, packing)
    if pool.size == 0:
        pool = Pool(index, shards, pool.longest_tokens - 1, packing)
    numbers = np.linspace(0, pool.size, min(num_sequences, pool.size), endpoint=False).astype(np.int64)
    windows = np.stack([pool.window(int(number)) for number in numbers])
    return windows[:, :-1], windows[:, 1:]


def bytes_per_token(index: Index, split: str) -> float:
    """UTF-8 bytes of text per token of a split, separators counted as tokens."""
    shards = index.of(split)
    return sum(s.text_bytes for s in shards) / max(sum(s.tokens for s in shards), 1)
