"""The embedded corpus (see PROVENANCE.md), prepared once per tokenizer into the user's cache folder."""

import dataclasses
import shutil
from importlib import resources

from hmoe.data.prepare import PrepareReport, PrepareRequest, prepare_data
from hmoe.data.shards import WITHIN, Index
from hmoe.errors import DataError
from hmoe.storage import get_cache_folder, hash_file


def open_corpus(tokenizer: str, report: PrepareReport = lambda progress: None) -> Index:
    """Open the embedded corpus as prepared data, 5% of it held out; the first call prepares it in seconds.

    Args:
        tokenizer: `bytes` or `bpe:SIZE`.
        report: called with the progress of preparing.
    """
    with resources.as_file(resources.files(__name__) / "austen.jsonl.xz") as text:
        folder = get_cache_folder() / f"corpus-{hash_file(text)[:8]}-{tokenizer.replace(':', '')}"
        request = PrepareRequest([str(text)], tokenizer, validation=0.05)
        try:
            index = prepare_data(request, folder, report, wait=True)
        except DataError:  # damaged, or of another version: it is only a cache
            shutil.rmtree(folder)
            index = prepare_data(request, folder, report, wait=True)
    # Sequences end with their book, as in every version, so that losses of all versions can be compared.
    return dataclasses.replace(index, packing=WITHIN)
