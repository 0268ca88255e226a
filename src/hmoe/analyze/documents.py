"""Where the documents come from that are looked into: texts, or the split that a run held out of its training."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from hmoe.analyze.reading import DocumentPart
from hmoe.data.long_text import encode_texts
from hmoe.data.shards import ACROSS, Index
from hmoe.data.tokenizer import Tokenizer
from hmoe.errors import DataError


def encode_documents(
    documents: Iterable[tuple[str, str]], tokenizer: Tokenizer, begin: Sequence[int] = ()
) -> Iterator[DocumentPart]:
    """Yield (domain, text) documents as tokens, as `hmoe data prepare` lays them out; long ones in parts.

    Args:
        documents: their domains and texts.
        tokenizer: the model's.
        begin: tokens that every text of the model begins with.
    """
    for domain, text in documents:
        is_first = True
        for _, ids, is_last in encode_texts(tokenizer, [text]):
            tokens = [*(begin if is_first else ()), *ids, *([tokenizer.separator] if is_last else ())]
            yield DocumentPart(domain, np.array(tokens, np.int64), is_first, is_last, stream=domain)
            is_first = False


def read_split(index: Index, split: str, packing: str) -> Iterator[DocumentPart]:
    """Yield the documents of a split of prepared data, with their begin tokens and separators.

    Args:
        index: of the data.
        split: train or valid.
        packing: how shards are cut into sequences, see `hmoe.data.packing`: windows run on from shard to shard or not.

    Raises:
        DataError: if the split is empty.
    """
    if not index.of(split):
        raise DataError(f"{index.folder}: has no {split} split")
    for shard in index.of(split):
        # shard: [begin tokens][document][separator] [begin tokens][document][separator] ...
        ids, start = index.tokens(shard), 0
        for place in (ids == index.separator).nonzero()[0].tolist():
            if place < start + len(index.begin):
                continue  # of what documents begin with, which may be the separator itself
            stop = place + 1
            stream = "" if packing == ACROSS else shard.file
            yield DocumentPart(shard.domain, ids[start:stop].astype(np.int64), stream=stream)
            start = stop
