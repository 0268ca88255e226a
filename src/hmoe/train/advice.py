"""What a run should be told of its data: how often it is read, and what shorter documents mean."""

from collections.abc import Iterator
from dataclasses import dataclass

from hmoe.config.run import TrainConfig
from hmoe.data.batches import Batches
from hmoe.data.shards import Index

_MOST_READS = 4  # of the data, after which more of them bring little
_SOURCE = "beyond about four times it brings little (Muennighoff et al. 2023)"


@dataclass(frozen=True)
class DrawnTokens:
    """Training tokens that sequences are drawn from.

    Attributes:
        name: of the domain, "" where all domains are one pool.
        num_tokens: how many there are.
        share: of the sequences, drawn from here.
    """

    name: str
    num_tokens: int
    share: float

    def count_reads(self, tokens: int) -> float:
        """Return how often a run of so many tokens reads these."""
        return tokens * self.share / self.num_tokens


class DataReads:
    """Follows how often a run has read its data, and says once when that is more than four times.

    With weights it is the domain that is read most often that counts.

    Args:
        batches: of the run.
        tokens: that it has trained on already.
    """

    def __init__(self, batches: Batches, tokens: int = 0) -> None:
        self._pools = list(_list_pools(batches))
        self._most_read = max(self._pools, key=lambda pool: pool.share / pool.num_tokens)
        # A run that goes on beyond four times heard of it when that happened.
        self._warned = self._most_read.count_reads(tokens) > _MOST_READS
        self._is_new, self._batch_tokens = tokens == 0, batches.config.batch_tokens

    def count_epochs(self, tokens: int) -> float:
        """Return a run's tokens by the training tokens that it draws from."""
        return tokens / sum(pool.num_tokens for pool in self._pools)

    def check_budget(self, train: TrainConfig) -> str:
        """Return a warning if the budget of a new run reads the data more than four times, else "".

        Budgets in FLOPs or seconds tell nothing of tokens beforehand.
        """
        limits = [train.steps and train.steps * self._batch_tokens, train.tokens]
        tokens = min((limit for limit in limits if limit), default=0)
        if not self._is_new or train.flops or train.seconds or self._reads(tokens) <= _MOST_READS:
            return ""
        self._warned = True
        return f"the budget of {tokens:,} tokens reads {self._describe()} {self._reads(tokens):.1f} times; {_SOURCE}"

    def update(self, tokens: int) -> str:
        """Return a warning when a run has just read its data more than four times, else ""."""
        if self._warned or self._reads(tokens) <= _MOST_READS:
            return ""
        self._warned = True
        return f"{self._describe()} were read {_MOST_READS} times by now; {_SOURCE}"

    def _reads(self, tokens: int) -> float:
        return self._most_read.count_reads(tokens)

    def _describe(self) -> str:
        whose = f"domain {self._most_read.name}" if self._most_read.name else "the data"
        return f"{whose}'s {self._most_read.num_tokens:,} training tokens"


def _list_pools(batches: Batches) -> Iterator[DrawnTokens]:
    start = 0.0
    for name, pool, stop in zip(batches.names, batches.pools, batches.stops.tolist(), strict=True):
        yield DrawnTokens(name, pool.tokens, (stop - start) / batches.stops[-1])
        start = stop


def describe_short_documents(index: Index, sequence_length: int) -> str:
    """Return a line where most training documents are shorter than a sequence, else "".

    Nothing is lost then: sequences are cut from documents that stand end to end, but tokens attend to those of other
    documents. Only mean lengths are known; documents whose mean is half a sequence are shorter than one for the most
    part, since at most half of them can be twice as long as the mean.
    """
    shards = index.of("train")
    documents = sum(shard.documents for shard in shards)
    mean = sum(shard.tokens for shard in shards) / documents if documents else sequence_length
    if 2 * mean > sequence_length:
        return ""
    return (
        f"most documents are shorter than a sequence: {mean:,.0f} tokens in the mean, so that a sequence of "
        f"{sequence_length:,} holds about {sequence_length / mean:,.0f}, whose tokens attend across their boundaries"
    )
