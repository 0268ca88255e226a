"""Tokens -> text, as it comes: characters whose bytes span tokens, stop texts that span tokens."""

import codecs
from collections.abc import Callable, Sequence


class Writer:
    """The text of one sequence, which may be shown only as far as `shown()`: a stop text might have begun behind it.

    Attributes:
        text: all that is decoded; after a stop, what is before it.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], stops: Sequence[str]) -> None:
        self._token_bytes, self._stops = token_bytes, stops
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._longest = max((len(stop) for stop in stops), default=0)
        self.text = ""

    def add(self, token: int) -> bool:
        """Append a token; True when a stop text is complete."""
        return self._append(self._decoder.decode(self._token_bytes(token)))

    def end(self) -> bool:
        """Append what is left of an incomplete character; True when that completes a stop text."""
        return self._append(self._decoder.decode(b"", final=True))

    def shown(self) -> int:
        """Characters that no stop text can take back."""
        for size in range(min(self._longest - 1, len(self.text)), 0, -1):
            if any(stop.startswith(self.text[-size:]) for stop in self._stops):
                return len(self.text) - size
        return len(self.text)

    def _append(self, piece: str) -> bool:
        begin = max(0, len(self.text) - self._longest + 1)
        self.text += piece
        if not piece or not self._stops:
            return False
        found = [place for stop in self._stops if (place := self.text.find(stop, begin)) >= 0]
        if found:
            self.text = self.text[: min(found)]
        return bool(found)
