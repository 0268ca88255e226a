"""How shards are cut into sequences: windows of L + 1 tokens that overlap by one, so that every token is predicted once."""

import numpy as np
import numpy.typing as npt

from hmoe.data.shards import ACROSS, WITHIN, Index, Shard

Tokens = npt.NDArray[np.int64]


class Pool:
    """The sequences that may be drawn from some shards.

    Args:
        index: of the data folder.
        shards: in the order in which they are read.
        length: L.
        packing: ACROSS or WITHIN.
    """

    def __init__(self, index: Index, shards: list[Shard], length: int, packing: str = ACROSS) -> None:
        self.index, self.shards, self.length = index, shards, length
        self._shard_ends = np.cumsum([shard.tokens for shard in shards], dtype=np.int64)
        self.tokens = int(self._shard_ends[-1]) if shards else 0
        # A stream is a stretch of tokens in which windows follow each other.
        stream_ends = self._shard_ends if packing == WITHIN else self._shard_ends[-1:]
        self._stream_starts = np.concatenate([[0], stream_ends[:-1]]).astype(np.int64)
        stream_tokens = stream_ends - self._stream_starts[: len(stream_ends)]
        num_windows = (stream_tokens - 1) // length
        self._window_ends = np.cumsum(num_windows)
        self.size = int(num_windows.sum())
        self.longest_tokens = int(stream_tokens.max(initial=0))
        # The first token of a stream is read but not predicted; it counts as reached where a window follows it.
        self.unreached_tokens = self.tokens - int((num_windows * length + (num_windows > 0)).sum())

    def window(self, number: int) -> Tokens:
        """L + 1 tokens."""
        stream = int(np.searchsorted(self._window_ends, number, side="right"))
        first = number - (int(self._window_ends[stream - 1]) if stream else 0)
        return self._read(int(self._stream_starts[stream]) + first * self.length, self.length + 1)

    def _read(self, start: int, count: int) -> Tokens:
        """Tokens of the shards laid end to end."""
        shard = int(np.searchsorted(self._shard_ends, start, side="right"))
        parts = []
        while count:
            place = start - (int(self._shard_ends[shard - 1]) if shard else 0)
            parts.append(self.index.tokens(self.shards[shard])[place : place + count])
            start, count, shard = start + len(parts[-1]), count - len(parts[-1]), shard + 1
        return np.concatenate(parts).astype(np.int64)
