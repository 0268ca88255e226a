"""The text of a sequence as it comes, up to a stop text, which may span tokens."""

from collections.abc import Sequence

from hmoe.data.detokenizer import Detokenizer


class Writer:
    """The text of one sequence, which may be shown only as far as `shown()`: a stop text might have begun behind it.

    Attributes:
        text: all that is decoded but an incomplete character; after a stop, what is before it.
    """

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str]) -> None:
        self._detokenizer, self._stops = detokenizer, stops
        self._longest = max((len(stop) for stop in stops), default=0)
        self.text = ""
        self._stopped = False

    def add(self, token: int) -> bool:
        """Append a token; True when a stop text is complete."""
        searched = len(self._detokenizer.settled)
        self._detokenizer.add(token)
        return self._take(self._detokenizer.readable(), searched)

    def end(self) -> bool:
        """Append what is left of an incomplete character; True when that completes a stop text."""
        searched = len(self._detokenizer.settled)
        self._detokenizer.end()
        return self._take(self._detokenizer.text, searched)

    def shown(self) -> int:
        """Characters that neither a stop text nor a later token can take back."""
        settled = self._detokenizer.settled
        for size in range(min(self._longest - 1, len(settled)), 0, -1):
            if any(stop.startswith(settled[-size:]) for stop in self._stops):
                return len(settled) - size
        return len(settled)

    def _take(self, text: str, searched: int) -> bool:
        """`text` is all so far, of which the first `searched` characters held no stop text."""
        if self._stopped:
            return True
        self.text = text
        begin = max(0, searched - self._longest + 1)
        places = [place for stop in self._stops if (place := text.find(stop, begin)) >= 0]
        if places:
            self.text = text[: min(places)]
        self._stopped = bool(places)
        return self._stopped
