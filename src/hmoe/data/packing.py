"""Cut shards into windows of L + 1 tokens that overlap by one, so that every token is predicted once."""

import numpy as np
import numpy.typing as npt

from hmoe.data.shards import ACROSS, WITHIN, Index, Shard

Tokens = npt.NDArray[np.int64]


class Pool:
    """The sequences that may be drawn from some shards.

    Args:
        index: index of the data folder.
        shards: shards in the order in which they are read.
        length: positions of a sequence, L.
        packing: ACROSS (sequences run on from shard to shard) or WITHIN (they end with their shard).

    Attributes:
        size: number of sequences.
        tokens: number of tokens of all shards.
        longest_tokens: tokens of the longest stretch that one sequence may be cut from.
        unreached_tokens: tokens that no sequence holds.
    """

    def __init__(self, index: Index, shards: list[Shard], length: int, packing: str = ACROSS) -> None:
        self.index, self.shards, self.length = index, shards, length
        # tokens of all shards, end to end:  [shard 0][shard 1][shard 2] ...
        # ACROSS: one stream;  WITHIN: a stream per shard.  A stream's windows start every L tokens.
        self._shard_ends = np.cumsum([shard.tokens for shard in shards], dtype=np.int64)
        self.tokens = int(self._shard_ends[-1]) if shards else 0
        stream_ends = self._shard_ends if packing == WITHIN else self._shard_ends[-1:]
        self._stream_starts = np.concatenate([[0], stream_ends[:-1]]).astype(np.int64)
        stream_tokens = stream_ends - self._stream_starts[: len(stream_ends)]
        num_windows = (stream_tokens - 1) // length
        self._window_ends = np.cumsum(num_windows)
        self.size = int(num_windows.sum())
        self.longest_tokens = int(stream_tokens.max(initial=0))
        # A stream's first token is read but not predicted; it counts as reached where a window follows it.
        self.unreached_tokens = self.tokens - int((num_windows * length + (num_windows > 0)).sum())

    def window(self, index: int) -> Tokens:
        """Return the L + 1 tokens of a sequence, by its index from 0."""
        stream = int(np.searchsorted(self._window_ends, index, side="right"))
        index_in_stream = index - (int(self._window_ends[stream - 1]) if stream else 0)
        return self._read(int(self._stream_starts[stream]) + index_in_stream * self.length, self.length + 1)

    def _read(self, start: int, num_tokens: int) -> Tokens:
        """Read tokens from `start` on, counted over all shards laid end to end."""
        shard = int(np.searchsorted(self._shard_ends, start, side="right"))
        parts = []
        while num_tokens:
            place = start - (int(self._shard_ends[shard - 1]) if shard else 0)
            parts.append(self.index.tokens(self.shards[shard])[place : place + num_tokens])
            start, num_tokens, shard = start + len(parts[-1]), num_tokens - len(parts[-1]), shard + 1
        return np.concatenate(parts).astype(np.int64)
