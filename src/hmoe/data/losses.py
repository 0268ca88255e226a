"""Count what a tokenizer loses of the texts that it encodes, while it encodes them."""

import zlib
from dataclasses import dataclass
from itertools import takewhile

from hmoe.data.tokenizer import Tokenizer

_WHOLE_BYTES = 4 << 20  # up to here every text is compared, after it one text in _SAMPLED_SHARE
_SAMPLED_SHARE = 16
_SHOWN_CHARS = 48  # of an example


@dataclass(frozen=True)
class EncodingLosses:
    """Counts of texts that differ from what their tokens decode to.

    Attributes:
        texts: texts compared; of large inputs a sample.
        lost: of these, texts with characters that do not come back.
        changed: of these, texts that come back with other spaces, or as the tokenizer's normalizer left them.
        unknown: tokens that stand for unknown text, in all texts.
        example: (as it was, as it comes back) of a text that is lost, else of one that is changed.
    """

    texts: int = 0
    lost: int = 0
    changed: int = 0
    unknown: int = 0
    example: tuple[str, str] | None = None

    def __add__(self, other: "EncodingLosses") -> "EncodingLosses":
        examples = (self, other) if self.lost or not other.lost else (other, self)
        return EncodingLosses(
            self.texts + other.texts,
            self.lost + other.lost,
            self.changed + other.changed,
            self.unknown + other.unknown,
            next((losses.example for losses in examples if losses.example), None),
        )

    def describe(self) -> str:
        """Return one line that says what is lost; "" if nothing is."""
        if not (self.lost or self.changed or self.unknown) or self.example is None:
            return ""
        before, after = self.example
        shown = f"for one {before!r} comes back as {after!r}"
        if not (self.lost or self.unknown):
            return (
                f"the tokenizer changes spaces or letters: {self.changed:,} of {self.texts:,} texts "
                f"compared, {shown}"
            )
        return (
            f"the tokenizer loses text: {self.lost:,} of {self.texts:,} texts compared do not come back, {shown}; "
            f"{self.unknown:,} tokens in all stand for unknown text"
        )


class CheckedTokenizer:
    """A tokenizer whose `encode` also counts in `losses` what the tokenizer loses."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self.losses, self._compared_bytes = tokenizer, EncodingLosses(), 0

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the tokenizer's ids of each text, and compare the texts with what the ids decode to."""
        encodings = self._tokenizer.encode(texts)
        unknown = self._tokenizer.unknown
        chosen = [(text, ids) for text, ids in zip(texts, encodings, strict=True) if self._is_chosen(text)]
        decoded = self._tokenizer.decode_batch([ids for _, ids in chosen])
        self.losses += EncodingLosses(
            unknown=sum(ids.count(unknown) for ids in encodings) if unknown is not None else 0
        )
        for (text, _), returned in zip(chosen, decoded, strict=True):
            self.losses += self._compare(text, returned)
        return encodings

    def _is_chosen(self, text: str) -> bool:
        content = text.encode()
        self._compared_bytes += len(content)
        # A hash chooses the sample, so that a preparation that was killed counts the same texts.
        return self._compared_bytes <= _WHOLE_BYTES or zlib.crc32(content) % _SAMPLED_SHARE == 0

    def _compare(self, text: str, returned: str) -> EncodingLosses:
        if returned == text:
            return EncodingLosses(texts=1)
        lost = _strip_spaces(returned) != _strip_spaces(self._tokenizer.normalize(text))
        return EncodingLosses(1, int(lost), int(not lost), 0, _show_difference(text, returned))


def _strip_spaces(text: str) -> str:
    """Return the text without spaces, in which the decoders of many tokenizers are free."""
    return "".join(text.replace("\u2581", " ").split())


def _show_difference(text: str, returned: str) -> tuple[str, str]:
    """Cut both texts down to the neighbourhood of the first place at which they differ."""
    num_shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, returned, strict=False)))
    start = max(0, num_shared - _SHOWN_CHARS // 3)
    return text[start : start + _SHOWN_CHARS], returned[start : start + _SHOWN_CHARS]
