"""Encode long texts in pieces, in memory that does not grow; the ids are those of the whole text.

A tokenizer's working memory is some two hundred times its input. A text is therefore cut, about every 131,072
characters, between two kinds of characters (letters or digits, and others) at a place where encoding the
neighbourhood in two parts gives the same ids as encoding it whole. No token of bytes, or of a byte-level BPE
(GPT-2's, LLaMA-3's, Qwen's), reaches over such a place, so the ids are those of the whole text; for other
tokenizers this is as certain as the 256 characters on both sides make it. Where 64 places fail, the text is
cut at the last of them in the text, and the ids there are those of two texts.
"""

from collections.abc import Callable, Iterator, Sequence

from hmoe.data.tokenizer import Tokenizer

Encode = Callable[[list[str]], list[list[int]]]
PIECE_CHARS = 1 << 17
_NEIGHBOURHOOD_CHARS = 256  # on each side of a cut
_SEARCH_CHARS = 1 << 14  # before the end of a piece, in which places are looked for
_TRIES = 64  # places that are tried for one cut
_CALL_CHARS = 1 << 20  # handed to the tokenizer at once, which spreads the pieces over the cores


def encode_texts(
    tokenizer: Tokenizer, texts: Sequence[str], encode: Encode | None = None
) -> Iterator[tuple[int, list[int], bool]]:
    """Encode texts in order as (index of the text, ids, whether these are its last), a long text in parts.

    Args:
        tokenizer: decides where a text may be cut.
        texts: of any length.
        encode: called for the pieces, once each, in place of the tokenizer's own.
    """
    encode = encode or tokenizer.encode
    pieces: list[str] = []
    labels: list[tuple[int, bool]] = []
    size = 0
    for index, text in enumerate(texts):
        for piece, last in cut_text(text, tokenizer):
            pieces.append(piece)
            labels.append((index, last))
            size += len(piece)
            if size >= _CALL_CHARS:
                yield from _encode_pieces(encode, pieces, labels)
                pieces, labels, size = [], [], 0
    yield from _encode_pieces(encode, pieces, labels)


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of one text, however long."""
    return [token for _, ids, _ in encode_texts(tokenizer, [text]) for token in ids]


def cut_text(text: str, tokenizer: Tokenizer | None) -> Iterator[tuple[str, bool]]:
    """Cut a text into (piece, whether it is the last); without a tokenizer, where GPT-2's would cut."""
    start = 0
    while len(text) - start > PIECE_CHARS:
        stop, next_start = _find_cut(text, start + PIECE_CHARS, tokenizer)
        yield text[start:stop], False
        start = next_start
    yield text[start:], True


def _encode_pieces(
    encode: Encode, pieces: list[str], labels: list[tuple[int, bool]]
) -> Iterator[tuple[int, list[int], bool]]:
    if pieces:
        for (index, last), ids in zip(labels, encode(pieces), strict=True):
            yield index, ids, last


def _find_cut(text: str, limit: int, tokenizer: Tokenizer | None) -> tuple[int, int]:
    """Find (end of a piece, start of the next): the last place up to `limit` that changes no id."""
    places = range(limit, limit - _SEARCH_CHARS, -1)
    changes = (place for place in places if text[place - 1].isalnum() != text[place].isalnum())
    last_change = None
    for place, _ in zip(changes, range(_TRIES), strict=False):
        last_change = last_change or place
        # LLaMA-2's kind puts a space before every text, so there the space between two pieces is left out.
        for next_start in (place, place + 1) if text[place] == " " else (place,):
            if _is_neutral(text, place, next_start, tokenizer):
                return place, next_start
    return (last_change or limit,) * 2


def _is_neutral(text: str, stop: int, start: int, tokenizer: Tokenizer | None) -> bool:
    """Return whether text[:stop] and text[start:] have the ids of the whole, as their neighbourhood tells."""
    if tokenizer is None:
        return text[stop] == " " and start == stop and not text[stop + 1 : stop + 2].isspace()
    left, right = text[stop - _NEIGHBOURHOOD_CHARS : stop], text[start : start + _NEIGHBOURHOOD_CHARS]
    whole, *parts = tokenizer.encode([left + text[stop:start] + right, left, right])
    return whole == parts[0] + parts[1]
