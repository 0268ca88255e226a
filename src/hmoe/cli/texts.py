"""Texts that `hmoe eval` and `hmoe upcycle` measure on."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hmoe.cli.output import print_note
from hmoe.errors import DataError, HMoEError

if TYPE_CHECKING:
    from hmoe.data.shards import Index
    from hmoe.runs.open_model import OpenedModel


def read_texts(paths: list[Path], text_field: str | None) -> Iterator[tuple[str, str]]:
    """Yield (domain, text) of files and folders; empty documents are left out, and counted in a note."""
    from hmoe.data.inputs import list_input_files
    from hmoe.data.readers import read_documents

    num_empty = 0
    for source in list_input_files([str(path) for path in paths], say=print_note):
        for document in read_documents(source, text_field):
            if isinstance(document, HMoEError):
                raise document
            num_empty += not document.text
            if document.text:
                yield document.domain, document.text
    if num_empty:
        print_note(f"left out {num_empty:,} empty documents")


def open_held_out_data(opened: "OpenedModel", run: Path) -> "Index":
    """Return the data of a run, which has a validation split; raise DataError that says what else can be read."""
    from hmoe.data.open import open_data

    assert opened.run is not None
    try:
        index = open_data(opened.run, opened.data, opened.tokenizer.fingerprint)
    except DataError as error:
        raise DataError(
            f"{error}; `hmoe train {run} data.path=NEW` says where it lies now, or name a text with --text"
        ) from None
    if not index.of("valid"):
        raise DataError(f"{index.folder}: no validation split; name a text with --text")
    return index


def list_validation_texts(opened: "OpenedModel", run: Path) -> Iterator[tuple[str, str]]:
    """Yield (domain, text) of the documents that a run held out of its training, decoded from their tokens."""
    index = open_held_out_data(opened, run)
    for shard in index.of("valid"):
        # shard: [begin tokens][document][separator] [begin tokens][document][separator] ...
        ids, start = index.tokens(shard), len(index.begin)
        for stop in (ids == index.separator).nonzero()[0].tolist():
            if stop < start:
                continue  # of what documents begin with, which may be the separator itself
            yield shard.domain, opened.tokenizer.decode(ids[start:stop].tolist())
            start = stop + 1 + len(index.begin)
