"""Write the documents of a source: cleaned, without duplicates, at most so many megabytes, a record a line."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hmoe.data.corpus_sources.sources import Source
from hmoe.data.corpus_sources.texts import SourceText, clean_code, clean_prose
from hmoe.storage import open_atomic

MOST_BYTES = 24_000_000  # of a source's text, so that none outweighs the others
_FEWEST_LETTERS = 200


@dataclass(frozen=True)
class SourceTally:
    """What became of a source's documents.

    Attributes:
        documents: those that were written.
        bytes: of their texts in UTF-8.
        sha256: of the file.
        duplicates: documents left out because another one of the source has the same text.
        short: those left out because they are shorter than 200 characters.
        beyond_limit: those left out so that the source has at most 24 MB.
    """

    documents: int
    bytes: int
    sha256: str
    duplicates: int
    short: int
    beyond_limit: int


def write_records(
    path: Path, source: Source, texts: Iterable[SourceText], most_bytes: int = MOST_BYTES
) -> SourceTally:
    """Write the file of a source; the same texts give the same bytes."""
    kept, num_duplicates, num_short = _select_texts(source, texts)
    chosen = _choose_within(kept, most_bytes)
    digest, num_bytes = hashlib.sha256(), 0
    with open_atomic(path) as file:
        for text in chosen:
            line = _make_line(source, text)
            file.write(line)
            digest.update(line)
            num_bytes += len(text.text.encode())
    return SourceTally(
        len(chosen), num_bytes, digest.hexdigest(), num_duplicates, num_short, len(kept) - len(chosen)
    )


def _make_line(source: Source, text: SourceText) -> bytes:
    record = {
        "id": f"{source.name}/{text.name}",
        "source": source.name,
        "domain": source.domain,
        "licence": source.licence,
        "text": text.text,
    }
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _select_texts(source: Source, texts: Iterable[SourceText]) -> tuple[list[SourceText], int, int]:
    """Return the cleaned texts that are long enough and the first of their kind, and how many were not."""
    clean = clean_code if source.domain == "code" else clean_prose
    kept: dict[bytes, SourceText] = {}
    num_duplicates = num_short = 0
    for name, raw in texts:
        text = clean(raw)
        digest = hashlib.sha256(text.encode()).digest()
        if len(text) < _FEWEST_LETTERS:
            num_short += 1
        elif digest in kept:
            num_duplicates += 1
        else:
            kept[digest] = SourceText(name, text)
    return list(kept.values()), num_duplicates, num_short


def _choose_within(texts: list[SourceText], most_bytes: int) -> list[SourceText]:
    """Return as many texts as have room, in their order; chosen by their names' hash, not from the beginning.

    The first half of a dictionary would know no word after M.
    """
    sizes = [len(text.text.encode()) for text in texts]
    if sum(sizes) <= most_bytes:
        return texts
    order = sorted(range(len(texts)), key=lambda i: hashlib.sha256(texts[i].name.encode()).digest())
    chosen, num_bytes = set(), 0
    for i in order:
        if num_bytes + sizes[i] <= most_bytes:
            chosen.add(i)
            num_bytes += sizes[i]
    return [text for i, text in enumerate(texts) if i in chosen]
