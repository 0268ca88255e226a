"""What a tokenizer loses of the texts that it encodes: counted while they are encoded, and said once."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

from hmoe.data.tokenizer import Tokenizer

_WHOLE_BYTES = 4 << 20  # of text that is compared whole; of what follows one text in _SHARE
_SHARE = 16
_SHOWN = 48  # characters of an example


@dataclass(frozen=True)
class Losses:
    """Texts compared with what their tokens decode to.

    Attributes:
        texts: compared; of large inputs a sample.
        lost: of these, texts with characters that do not come back.
        changed: of these, texts that come back with other spaces, or as the tokenizer's normalizer left them.
        unknown: tokens that stand for unknown text, in all texts.
        example: of a text that is lost, or of one that is changed: (as it was, as it comes back).
    """

    texts: int = 0
    lost: int = 0
    changed: int = 0
    unknown: int = 0
    example: tuple[str, str] | None = None

    def __add__(self, other: "Losses") -> "Losses":
        examples = (self, other) if self.lost or not other.lost else (other, self)
        return Losses(
            self.texts + other.texts,
            self.lost + other.lost,
            self.changed + other.changed,
            self.unknown + other.unknown,
            next((losses.example for losses in examples if losses.example), None),
        )

    def describe(self) -> str:
        """One line; "" if nothing was lost."""
        if not (self.lost or self.changed or self.unknown) or self.example is None:
            return ""
        before, after = self.example
        shown = f"for one {before!r} comes back as {after!r}"
        if not (self.lost or self.unknown):
            return (
                f"the tokenizer changes spaces or letters: {self.changed:,} of {self.texts:,} texts compared, {shown}"
            )
        return (
            f"the tokenizer loses text: {self.lost:,} of {self.texts:,} texts compared do not come back, {shown}; "
            f"{self.unknown:,} tokens in all stand for unknown text"
        )


class CheckedTokenizer:
    """Encodes as its tokenizer does, and counts in `losses` what that loses."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self.losses, self._compared_bytes = tokenizer, Losses(), 0

    def encode(self, texts: list[str]) -> list[list[int]]:
        """See Tokenizer."""
        encodings = self._tokenizer.encode(texts)
        unknown = self._tokenizer.unknown
        chosen = [(text, ids) for text, ids in zip(texts, encodings, strict=True) if self._is_chosen(text)]
        decoded = self._tokenizer.decode_batch([ids for _, ids in chosen])
        self.losses += Losses(unknown=sum(ids.count(unknown) for ids in encodings) if unknown is not None else 0)
        for (text, _), again in zip(chosen, decoded, strict=True):
            self.losses += self._compare(text, again)
        return encodings

    def _is_chosen(self, text: str) -> bool:
        content = text.encode()
        self._compared_bytes += len(content)
        return self._compared_bytes <= _WHOLE_BYTES or zlib.crc32(content) % _SHARE == 0

    def _compare(self, text: str, again: str) -> Losses:
        if again == text:
            return Losses(texts=1)
        lost = _letters(again) != _letters(self._tokenizer.normalize(text))
        return Losses(1, int(lost), int(not lost), 0, tuple(_from_difference(text, again)))  # type: ignore[arg-type]


def _letters(text: str) -> str:
    """Without spaces, in which the decoders of many tokenizers are free."""
    return "".join(text.replace("\u2581", " ").split())


def _from_difference(text: str, again: str) -> Iterator[str]:
    """The neighbourhood of the first place at which they differ."""
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, again, strict=False)))
    start = max(0, shared - _SHOWN // 3)
    yield from (whole[start : start + _SHOWN] for whole in (text, again))
