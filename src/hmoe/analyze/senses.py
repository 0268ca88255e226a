"""How many senses words have, from a list that users bring, and which token types are such words."""

import csv
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from hmoe.analyze.traced_text import Bools, Floats
from hmoe.errors import DataError

_WORDNET_SENSES = "index.sense"
_WORDNET_PARTS = ("index.noun", "index.verb", "index.adj", "index.adv")
_INDEX_FIELDS, _SENSE_FIELDS = 4, 4  # that a line of either of WordNet's indexes has at least
_COLUMNS = 2


def read_senses(path: Path | str) -> dict[str, int]:
    """Return numbers of senses by lower-cased word.

    Args:
        path: a file with a word and its number of senses in each line, separated by a tab or a comma; the first line
            may name the columns, and lines that begin with # are comments. Or WordNet's own `index.sense`,
            `index.noun`, `index.verb`, `index.adj` or `index.adv` as they are, of which each is read alone, or the
            folder that has them, by which senses are summed over parts of speech.

    Raises:
        DataError: for what cannot be read, with file, line and value.
    """
    path = Path(path)
    if path.is_dir():
        return _read_wordnet_folder(path)
    if path.name == _WORDNET_SENSES:
        senses = _count_sense_keys(path)
    elif path.name in _WORDNET_PARTS:
        senses = _read_index(path)
    else:
        senses = _read_list(path)
    if not senses:
        raise DataError(f"{path}: has no words")
    return senses


def map_senses(senses: Mapping[str, int], texts: Sequence[str], begins_word_V: Bools | None = None) -> Floats:
    """Return the senses of each token type that is a whole word of the list, NaN for all others.

    Parts of words are none even where they look like a word: "able" in "agree|able".

    Args:
        senses: by lower-cased word.
        texts: of each token type, with the space that it begins with.
        begins_word_V: whether each type begins a word. By default those that begin with a space do, and all in a
            vocabulary in which no type does.
    """
    if begins_word_V is None:
        begins_word_V = np.array(
            [text[:1].isspace() and bool(text.strip()) for text in texts], dtype=np.bool_
        )
        begins_word_V = begins_word_V if begins_word_V.any() else np.ones(len(texts), np.bool_)
    return np.array(
        [
            senses.get(text.strip().lower(), math.nan) if begins else math.nan
            for text, begins in zip(texts, begins_word_V, strict=True)
        ],
        dtype=np.float64,
    )


def _read_wordnet_folder(folder: Path) -> dict[str, int]:
    if (folder / _WORDNET_SENSES).is_file():
        return read_senses(folder / _WORDNET_SENSES)
    parts = [folder / name for name in _WORDNET_PARTS if (folder / name).is_file()]
    if not parts:
        names = ", ".join((_WORDNET_SENSES, *_WORDNET_PARTS))
        raise DataError(f"{folder}: has none of WordNet's files {names}")
    return dict(sum((Counter(read_senses(part)) for part in parts), Counter()))


def _read_list(path: Path) -> dict[str, int]:
    senses: dict[str, int] = {}
    lines: dict[str, int] = {}
    is_first = True
    for line_number, line in _iterate_lines(path):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            fields = line.split("\t") if "\t" in line else next(csv.reader([line]))
        except csv.Error as error:
            raise DataError(f"{path}:{line_number}: is no line of a CSV file: {error}") from None
        if len(fields) != _COLUMNS:
            raise DataError(
                f"{path}:{line_number}: {line!r} has {len(fields)} columns, must be a word and its number of senses, "
                "separated by a tab or a comma"
            )
        word, count = fields[0].strip().lower(), fields[1].strip()
        begins, is_first = is_first, False
        if begins and not any(char.isdigit() for char in count):
            continue  # names of columns
        if not word:
            raise DataError(f"{path}:{line_number}: {line!r} has no word")
        value = _read_count(count, path, line_number)
        if senses.setdefault(word, value) != value:
            raise DataError(
                f"{path}:{line_number}: {word!r} has {value} senses, and {senses[word]} in line {lines[word]}; "
                "capitals are not told apart"
            )
        lines.setdefault(word, line_number)
    return senses


def _read_index(path: Path) -> dict[str, int]:
    """Read lines such as `bank n 10 5 @ ~ ...`: lemma, part of speech, number of synsets."""
    senses: Counter[str] = Counter()
    for line_number, line in _iterate_lines(path):
        if line.startswith("  ") or not line.strip():
            continue  # the licence
        fields = line.split()
        if len(fields) < _INDEX_FIELDS:
            raise DataError(
                f"{path}:{line_number}: {line!r} is no line of WordNet's index: lemma pos synset_cnt ..."
            )
        senses[_clean_lemma(fields[0])] += _read_count(fields[2], path, line_number)
    return dict(senses)


def _count_sense_keys(path: Path) -> dict[str, int]:
    """Count lines such as `bank%1:14:00:: 08420278 1 20` by lemma."""
    senses: Counter[str] = Counter()
    for line_number, line in _iterate_lines(path):
        if not line.strip():
            continue
        fields = line.split()
        lemma, percent, _ = fields[0].partition("%")
        if len(fields) != _SENSE_FIELDS or not percent or not lemma:
            raise DataError(
                f"{path}:{line_number}: {line!r} is no line of WordNet's index.sense: lemma%... offset ..."
            )
        senses[_clean_lemma(lemma)] += 1
    return dict(senses)


def _clean_lemma(lemma: str) -> str:
    return lemma.replace("_", " ").lower()


def _read_count(text: str, path: Path, line_number: int) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) < 1:
        raise DataError(f"{path}:{line_number}: {text[:40]!r} senses, must be a whole number of at least 1")
    return int(text)


def _iterate_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield lines with their numbers, from 1."""
    try:
        with path.open("rb") as stream:
            for line_number, content in enumerate(stream, 1):
                try:
                    line = content.decode("utf-8-sig" if line_number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{path}:{line_number}: {content!r} is no UTF-8 ({error.reason})"
                    ) from None
                yield line_number, line.rstrip("\r\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
