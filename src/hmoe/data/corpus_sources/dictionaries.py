"""Texts of dictionaries: files of dictd, and WordNet's glosses."""

import re
from collections.abc import Iterator
from pathlib import Path

from hmoe.data.corpus_sources.texts import SourceText, group_parts, read_file

_DOCUMENT_LETTERS = 8_000
_ORIGINS = re.compile(
    r"\n\s*\[(1913 Webster|PJC|WordNet 1\.5|Webster 1913 Suppl\.|Century Dict\. 1906)\]"
)  # of a sense
_PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")


def read_dictd_entries(path: Path) -> Iterator[SourceText]:
    """Give a dictd file's entries, which begin without indent, in groups of a few pages."""
    text = _ORIGINS.sub("", read_file(path))
    entries = (entry.strip("\n") for entry in re.split(r"\n\n+(?=\S)", text))
    # Entries of such names tell of the file itself.
    words = (entry for entry in entries if entry and not entry.startswith("00-database"))
    name = path.name.removesuffix(".dz").removesuffix(".dict")
    return group_parts(name, words, _DOCUMENT_LETTERS)


def read_wordnet_glosses(folder: Path) -> Iterator[SourceText]:
    """Give WordNet's synonyms with their glosses, `car, auto: a motor vehicle ...`, a line each."""
    for part in _PARTS_OF_SPEECH:
        with (folder / f"data.{part}").open(encoding="latin-1") as lines:
            glosses = [_read_gloss(line) for line in lines if not line.startswith(" ")]  # of the licence
        yield from group_parts(part, glosses, _DOCUMENT_LETTERS, joint="\n")


def _read_gloss(line: str) -> str:
    """Read `offset file type count word id word id ... | gloss`, the count in hexadecimal digits."""
    fields, _, gloss = line.partition(" | ")
    words = fields.split()
    synonyms = words[4 : 4 + 2 * int(words[3], 16) : 2]
    return f"{', '.join(synonyms).replace('_', ' ')}: {gloss.strip()}"
