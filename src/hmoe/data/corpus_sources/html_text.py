"""Plain text of simple HTML: blocks on lines of their own, no markup, no navigation."""

import re
from html.parser import HTMLParser

_PARAGRAPHS = {  # an empty line before and after
    "p", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "table", "pre", "dl", "ul", "ol",
}  # fmt: skip
_LINES = {"div", "li", "tr", "dt", "dd", "br", "hr"}
_CELLS = {"td", "th"}
_SKIPPED = {"head", "script", "style", "nav"}
_SKIPPED_CLASSES = {"navheader", "navfooter"}  # of DocBook's pages


class _TextParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._skipped = ""  # name of the element that is passed over
        self._depth = 0  # elements of that name that are open in it
        self._num_pre = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._skipped:
            self._depth += tag == self._skipped
            return
        classes = (dict(attrs).get("class") or "").split()
        if tag in _SKIPPED or not _SKIPPED_CLASSES.isdisjoint(classes):
            self._skipped, self._depth = tag, 1
            return
        self._break_line(tag)
        self._num_pre += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if self._skipped:
            self._depth -= tag == self._skipped
            if not self._depth:
                self._skipped = ""
            return
        self._num_pre = max(self._num_pre - (tag == "pre"), 0)
        if tag in _PARAGRAPHS:
            self._break_line(tag)

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self.parts.append(data if self._num_pre else re.sub(r"\s+", " ", data))

    def _break_line(self, tag: str) -> None:
        if tag in _PARAGRAPHS:
            self.parts.append("\n\n")
        elif tag in _LINES:
            self.parts.append("\n")
        elif tag in _CELLS:
            self.parts.append(" ")


def convert_html(page: str) -> str:
    """Return the text of a page, without its head, scripts, styles and navigation."""
    parser = _TextParser()
    parser.feed(page)
    parser.close()
    text = re.sub(r"\n (?=\S)", "\n", "".join(parser.parts))
    return re.sub(r"\n\s*\n", "\n\n", text).strip()
