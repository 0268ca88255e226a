"""Turn tokens into text as they come; the pieces join to what decoding all of them at once gives."""

from collections.abc import Callable, Sequence
from itertools import takewhile

_INCOMPLETE = "\ufffd"  # what a decoder writes for bytes that are no character, or not one yet


class Detokenizer:
    """Decodes the tokens that follow a context, one after another.

    Only the last tokens are decoded again when one comes, as vLLM and `tokenizers.decoders.DecodeStream` do.
    That class is not used because it raises where a byte makes the bytes before it invalid, and knows neither
    SentencePiece models nor bytes.

    Args:
        decode: gives the text of ids.
        is_open: whether the text of a token may change with the tokens after it.
        context: ids before the first token; their text is not repeated.

    Attributes:
        settled: text that later tokens cannot change.
        tail: text after that, as it is if no further token comes.
    """

    def __init__(
        self, decode: Callable[[list[int]], str], is_open: Callable[[int], bool], context: Sequence[int] = ()
    ) -> None:
        self._decode, self._is_open = decode, is_open
        self._window = list(context)  # decoded together: [tokens of `_before`][tokens of the tail]
        self._before = decode(self._window)
        if self._before.endswith(_INCOMPLETE):
            # The context was shown with it already, so what follows may not complete it.
            self._window, self._before = [], ""
        self._num_before = len(self._window)
        self.settled, self.tail = "", ""

    @property
    def text(self) -> str:
        """All text so far."""
        return self.settled + self.tail

    def add(self, token: int) -> None:
        """Append a token and settle as much of the text as later tokens cannot change."""
        self._window.append(token)
        decoded = self._decode(self._window)
        if decoded == self._before + self.tail:
            return  # no text of its own, such as a control token, which leaves open what is open
        # Bytes that follow can make the context's last ones invalid: then its text is no prefix any more.
        num_shared = len(self._before)
        if not decoded.startswith(self._before):
            pairs = zip(self._before, decoded, strict=False)
            num_shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self.tail = decoded[num_shared:]
        if self.tail and not self.tail.endswith(_INCOMPLETE) and not self._is_open(token):
            self.settled, self.tail = self.settled + self.tail, ""
            self._window = self._window[self._num_before :]
            self._num_before = len(self._window)
            self._before = self._decode(self._window)

    def end(self) -> None:
        """Settle all text, because no token follows."""
        self.settled, self.tail = self.text, ""

    def readable(self) -> str:
        """Return all text so far, without an incomplete character at its end."""
        return self.settled + self.tail.rstrip(_INCOMPLETE)
