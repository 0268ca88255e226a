"""What each token type is: its text, its length, and the classes that experts may prefer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hmoe.analyze.traced_text import Bools, Ints
from hmoe.data.tokenizer import Tokenizer

CLASS_NAMES = {  # labelling -> names of its classes; types that are in none have class -1
    "word part": ("begins a word", "goes on in a word"),
    "digits": ("no digits", "digits"),
    "punctuation": ("no punctuation", "punctuation"),
    "case": ("lower case", "Capital", "ALL CAPITALS"),
}


@dataclass(frozen=True)
class TokenTypes:
    """What a vocabulary's token types look like.

    Attributes:
        texts: of each type, as people read them; types that are a part of a character stand as <E2>.
        lengths: UTF-8 bytes of each type.
        labels: class of each type by labelling (`CLASS_NAMES`), -1 for none.
        goes_on: whether a type goes on in a word if a letter or a digit stands before it.
        ends_open: whether a type ends in a letter or a digit, so that the word may go on.
    """

    texts: tuple[str, ...]
    lengths: Ints
    labels: dict[str, Ints]
    goes_on: Bools
    ends_open: Bools


def describe_token_types(tokenizer: Tokenizer, vocab: int) -> TokenTypes:
    """Return what the types of a tokenizer are; ids above its own, which a model may have, are empty."""
    contents = [
        tokenizer.token_bytes(token) if token < tokenizer.vocab_size else b"" for token in range(vocab)
    ]
    texts = tuple(_decode(content, token, tokenizer) for token, content in enumerate(contents))
    plain = [text if content else "" for text, content in zip(texts, contents, strict=True)]
    is_part = np.array([_is_part_of_character(content) for content in contents], dtype=np.bool_)
    first = np.array([text[:1].isalnum() for text in plain], dtype=np.bool_) | is_part
    last = np.array([text[-1:].isalnum() for text in plain], dtype=np.bool_) | is_part
    labels = {name: np.array([_classify(name, text) for text in plain]) for name in CLASS_NAMES}
    for class_V in labels.values():
        class_V[is_part] = -1  # nobody can say of half a letter whether it is a capital
    lengths = np.array([len(content) for content in contents])
    return TokenTypes(texts, lengths, labels, first, last)


def locate_in_words(types: TokenTypes, tokens: Ints, before: tuple[int, int] | None = None) -> Ints:
    """Return for each token of a text how many tokens of the same word stand before it.

    Args:
        types: of the vocabulary.
        tokens: in the order of the text.
        before: (type, position in its word) of the token before these, where the text goes on.
    """
    goes_on = types.goes_on[tokens].copy()
    goes_on[1:] &= types.ends_open[tokens[:-1]]
    goes_on[:1] &= before is not None and bool(types.ends_open[before[0]])
    places = np.arange(len(tokens))
    starts = np.maximum.accumulate(np.where(goes_on, -1, places))
    carried = before[1] + 1 if before is not None else 0
    return np.where(starts < 0, places + carried, places - starts)


def _decode(content: bytes, token: int, tokenizer: Tokenizer) -> str:
    if not content:
        names = {special: text for text, special in tokenizer.specials.items()}
        return names.get(token, f"<{token}>")
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "".join(f"<{byte:02X}>" for byte in content)


def _is_part_of_character(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return True
    return False


def _classify(labelling: str, text: str) -> int:
    """Return the class of a text in a labelling, -1 for none."""
    word = text.strip()
    if not word:
        return -1
    letters = [char for char in word if char.isalpha()]
    if labelling == "digits":
        return int(any(char.isdigit() for char in word))
    if labelling == "punctuation":
        return int(not any(char.isalnum() for char in word))
    if not letters:
        return -1
    if labelling == "word part":
        return int(not text[0].isspace())
    if not any(char.isupper() for char in letters):
        return 0
    return 2 if len(letters) > 1 and all(char.isupper() for char in letters) else 1


def find_token_ids(types: TokenTypes, wanted: Sequence[str]) -> dict[str, list[int]]:
    """Return the ids of token types by their text; a text without its space is looked for with it too."""
    ids: dict[str, list[int]] = {}
    for token, text in enumerate(types.texts):
        ids.setdefault(text, []).append(token)
    return {text: [*ids.get(text, []), *ids.get(f" {text}", [])] for text in wanted}
