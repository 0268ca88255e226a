"""Batch n as a pure function of (seed, n): nothing to save, nothing that depends on ranks or workers."""

import numpy as np
import numpy.typing as npt

from hmoe.config import DataConfig
from hmoe.data.order import permute
from hmoe.data.shards import Index, Shard
from hmoe.errors import ConfigError, DataError

_BLOCK = 10_000  # samples over which domain weights are met exactly
Tokens = npt.NDArray[np.int64]


class _Pool:
    """Sequences of some shards: windows of L + 1 tokens that overlap by one and stay inside a shard."""

    def __init__(self, index: Index, shards: list[Shard], length: int) -> None:
        self.index, self.shards, self.length = index, shards, length
        self.stops = np.cumsum([max(0, shard.tokens - 1) // length for shard in shards])
        self.size = int(self.stops[-1]) if shards else 0

    def window(self, number: int) -> Tokens:
        """L + 1 tokens."""
        shard = int(np.searchsorted(self.stops, number, side="right"))
        first = number - (int(self.stops[shard - 1]) if shard else 0)
        tokens = self.index.tokens(self.shards[shard])
        return tokens[first * self.length : (first + 1) * self.length + 1].astype(np.int64)


class Batches:
    """Training batches: `batches[step]` is (tokens_BL, targets_BL), the targets one token ahead.

    Every epoch visits each sequence of a domain once, in an order keyed by (seed, domain, epoch). With domain weights
    every 10,000 samples hold each domain in exact proportion; without, all domains are one pool.

    Raises:
        DataError: if a domain has fewer tokens than one sequence.
        ConfigError: for weights of unknown domains.
    """

    def __init__(self, index: Index, config: DataConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        weights = config.weights or index.weights
        known = sorted({shard.domain for shard in index.of("train")})
        for domain in weights or {}:
            if domain not in known:
                raise ConfigError(f"data.weights.{domain}: no such domain; the data has {', '.join(known)}")
        names = [name for name in sorted(weights) if weights[name] > 0] if weights else [""]
        self.pools = [_Pool(index, index.of("train", name or None), config.sequence_length) for name in names]
        for name, pool in zip(names, self.pools, strict=True):
            if pool.size == 0:
                tokens = max((shard.tokens for shard in pool.shards), default=0)
                raise DataError(
                    f"{index.folder}: training split{f' of {name}' if name else ''} has shards of at most {tokens} tokens, "
                    f"data.sequence_length = {config.sequence_length} needs {config.sequence_length + 1}"
                )
        share = np.cumsum([weights[name] for name in names]) if weights else np.ones(1)
        for name in names:
            if weights and weights[name] * _BLOCK < share[-1]:
                raise ConfigError(
                    f"data.weights.{name} = {weights[name]}: below 1/{_BLOCK} of the sum; raise it or set it to 0"
                )
        self.names = names
        self.stops = np.round(share / share[-1] * _BLOCK).astype(np.int64)

    def __getitem__(self, step: int) -> tuple[Tokens, Tokens]:
        size = self.config.batch_sequences
        sample_B = np.arange(step * size, (step + 1) * size)
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


def validation(index: Index, length: int, num_sequences: int) -> tuple[Tokens, Tokens]:
    """(tokens_BL, targets_BL) of the same up to `num_sequences` validation sequences every time, spread over the split.

    A split shorter than one sequence gives one shorter sequence, an empty one none.
    """
    shards = [shard for shard in index.of("valid") if shard.tokens > 1]
    if not shards:
        return np.zeros((0, length), np.int64), np.zeros((0, length), np.int64)
    pool = _Pool(index, shards, length)
    if pool.size == 0:
        pool = _Pool(index, shards, max(shard.tokens for shard in shards) - 1)
    numbers = np.linspace(0, pool.size, min(num_sequences, pool.size), endpoint=False).astype(np.int64)
    windows = np.stack([pool.window(int(number)) for number in numbers])
    return windows[:, :-1], windows[:, 1:]


def bytes_per_token(index: Index, split: str) -> float:
    """UTF-8 bytes of text per token of a split, separators counted as tokens."""
    shards = index.of(split)
    return sum(s.text_bytes for s in shards) / max(sum(s.tokens for s in shards), 1)
