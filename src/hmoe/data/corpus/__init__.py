"""The embedded corpus (see PROVENANCE.md), prepared once per tokenizer into the user's cache folder."""

import os
from importlib import resources
from pathlib import Path

from hmoe.data.prepare import Report, Request, prepare
from hmoe.data.shards import Index
from hmoe.files import sha256


def open_corpus(tokenizer: str, report: Report = lambda progress: None) -> Index:
    """The embedded corpus as prepared data, 5% held out; prepared on first use (seconds)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    with resources.as_file(resources.files(__name__) / "austen.jsonl.xz") as text:
        name = f"corpus-{sha256(text)[:8]}-{tokenizer.replace(':', '')}"
        return prepare(Request([str(text)], tokenizer, validation=0.05), cache / "hmoe" / name, report, wait=True)
