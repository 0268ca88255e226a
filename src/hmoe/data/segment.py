"""Write a stretch of input to shards: one file per split and domain, published by a rename."""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from hmoe.data.documents import InputPosition, PositionedDocument
from hmoe.data.long_text import encode_texts
from hmoe.data.losses import CheckedTokenizer, EncodingLosses
from hmoe.data.readers import Document
from hmoe.data.shards import Shard, choose_token_dtype
from hmoe.data.tokenizer import Tokenizer
from hmoe.errors import DataError
from hmoe.storage import flush_to_disk, hash_file

MAX_DOMAINS = 1000
_BATCH_BYTES = 4 << 20  # text that is encoded before the next look at whether the segment is full
_WAITING_TOKENS = 1 << 20  # tokens kept in memory before they are written


class Segment:
    """The shards of one stretch of input, one per split and domain, written as the documents come.

    Args:
        out: the data folder.
        index: number of the segment from 0, a part of its files' names.
        tokenizer: encodes the documents.
        threshold: documents whose hash is below this are held out.
        begin: tokens before every document.
    """

    def __init__(
        self, out: Path, index: int, tokenizer: Tokenizer, threshold: int, begin: Sequence[int] = ()
    ) -> None:
        self.out, self.index, self.tokenizer, self.threshold = out, index, tokenizer, threshold
        self.begin, self.checked = begin, CheckedTokenizer(tokenizer)
        self.counts: dict[tuple[str, str], list[int]] = {}  # (split, domain) -> tokens, documents, text bytes
        self.files: dict[tuple[str, str], Path] = {}
        self.position: InputPosition | None = None
        self.dtype = choose_token_dtype(tokenizer.vocab_size)

    @property
    def losses(self) -> EncodingLosses:
        """What the tokenizer lost of the texts so far."""
        return self.checked.losses

    def fill(
        self, items: Iterator[PositionedDocument], segment_bytes: int, report: Callable[[], None]
    ) -> bool:
        """Take documents until the segment is full; return True when the input ended."""
        while sum(count[2] for count in self.counts.values()) < segment_bytes:
            batch, size = list[PositionedDocument](), 0
            for item in items:
                batch.append(item)
                size += len(item.document.text)
                if size >= _BATCH_BYTES or size >= segment_bytes:
                    break
            else:
                self._write(batch)
                return True
            self._write(batch)
            report()
        return False

    def publish(self) -> list[Shard]:
        """Flush, hash and rename the segment's files; return what they are."""
        shards = []
        for (split, domain), temporary in self.files.items():
            flush_to_disk(temporary)
            final = self.out / temporary.name.removeprefix(".").removesuffix(".tmp")
            tokens, documents, text_bytes = self.counts[split, domain]
            shards.append(
                Shard(final.name, split, domain, tokens, documents, text_bytes, hash_file(temporary))
            )
            temporary.replace(final)
        flush_to_disk(self.out)
        return shards

    def _write(self, batch: list[PositionedDocument]) -> None:
        places = [self._count(item.document) for item in batch]
        texts = [item.document.text for item in batch]
        tokens: dict[tuple[str, str], list[int]] = {}
        num_waiting, is_continued = 0, False
        for index, ids, is_last in encode_texts(self.tokenizer, texts, self.checked.encode):
            # A long document comes in parts: only its first part has the begin, only its last the separator.
            content = [
                *(() if is_continued else self.begin),
                *ids,
                *([self.tokenizer.separator] if is_last else ()),
            ]
            is_continued = not is_last
            tokens.setdefault(places[index], []).extend(content)
            self.counts[places[index]][0] += len(content)
            num_waiting += len(content)
            if num_waiting >= _WAITING_TOKENS:
                self._append(tokens)
                tokens, num_waiting = {}, 0
        self._append(tokens)
        self.position = batch[-1].after if batch else self.position

    def _count(self, document: Document) -> tuple[str, str]:
        """Count a document, but not its tokens, and return its split and domain."""
        text = document.text.encode()
        where = ("valid" if hash_text(text) < self.threshold else "train", document.domain)
        counts = self.counts.setdefault(where, [0, 0, 0])
        counts[1] += 1
        counts[2] += len(text)
        return where

    def _append(self, tokens: dict[tuple[str, str], list[int]]) -> None:
        for where, content in tokens.items():
            path = self.files.setdefault(where, self._path(*where))
            try:
                with path.open("ab") as file:
                    file.write(np.asarray(content, dtype=self.dtype).tobytes())
            except OSError as error:
                raise DataError(f"{path}: cannot be written: {error.strerror}") from None
        if len(self.files) > 2 * MAX_DOMAINS:  # a domain has a file for each of two splits
            raise DataError(f"more than {MAX_DOMAINS} domains; name one for all with domain=PATH")

    def _path(self, split: str, domain: str) -> Path:
        # Names are made safe; a hash keeps those apart that become the same.
        safe = re.sub(r"[^A-Za-z0-9_-]+", "_", domain)[:60]
        safe += (
            ""
            if safe == domain
            else f"-{hashlib.sha256(domain.encode('utf-8', 'surrogatepass')).hexdigest()[:6]}"
        )
        return self.out / f".{split}-{safe}-{self.index:05d}.bin.tmp"


def hash_text(text: bytes) -> int:
    """Return the first 8 bytes of a text's SHA-256 as a number, which chooses a document's split."""
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
