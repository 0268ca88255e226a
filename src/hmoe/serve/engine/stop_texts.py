"""The text of a sequence as it comes, up to a stop text, which may span tokens."""

from collections.abc import Sequence

from hmoe.data.detokenizer import Detokenizer


class StoppableText:
    """Collects the text of a sequence, of which only the first `count_safe()` characters may be shown yet.

    Attributes:
        text: all that is decoded but an incomplete character; after a stop, what is before it.
    """

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str]) -> None:
        self._detokenizer, self._stops = detokenizer, stops
        self._longest = max((len(stop) for stop in stops), default=0)
        self.text = ""
        self._stopped = False

    def add(self, token: int) -> bool:
        """Append a token, and return whether a stop text is complete."""
        num_searched = len(self._detokenizer.settled)
        self._detokenizer.add(token)
        # An incomplete character at the end is left out: it would be shown as a replacement character.
        return self._take(self._detokenizer.readable(), num_searched)

    def end(self) -> bool:
        """Append what is left of an incomplete character, and return whether that completes a stop text."""
        num_searched = len(self._detokenizer.settled)
        self._detokenizer.end()
        return self._take(self._detokenizer.text, num_searched)

    def count_safe(self) -> int:
        """Return how many characters neither a stop text nor a later token can take back."""
        settled = self._detokenizer.settled
        # The longest end of the text that begins a stop text is held back, since the next token may complete
        # that.
        for size in range(min(self._longest - 1, len(settled)), 0, -1):
            if any(stop.startswith(settled[-size:]) for stop in self._stops):
                return len(settled) - size
        return len(settled)

    def _take(self, text: str, num_searched: int) -> bool:
        """Take over all text so far, of which the first `num_searched` characters hold no stop text."""
        if self._stopped:
            return True
        self.text = text
        # A stop text that ends in the new characters may begin in the old ones, one character less than it is
        # long.
        begin = max(0, num_searched - self._longest + 1)
        positions = [position for stop in self._stops if (position := text.find(stop, begin)) >= 0]
        if positions:
            self.text = text[: min(positions)]
        self._stopped = bool(positions)
        return self._stopped
