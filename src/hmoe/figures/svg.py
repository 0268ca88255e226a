"""Makes a drawn SVG a part of a page: colours of its text, ids of its own, words for screen readers, no links."""

import re
from html import escape

INK = "#010203"  # drawn where the colour of the surrounding text shall stand
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
_THEMES = (
    "<style>:root{color-scheme:light dark;color:#111}"
    "@media (prefers-color-scheme:dark){:root{color:#eee}}</style>"
)


def adapt_svg(drawn: str, prefix: str, title: str, description: str, embedded: bool) -> str:
    """Return an SVG for a page, or for a file of its own.

    Args:
        drawn: as matplotlib writes it.
        prefix: begins all of its ids, so that several stand in one page.
        title: read out first.
        description: read out after it.
        embedded: whether it stands in HTML, whose text colour it takes; alone it follows the reader's theme.
    """
    body = drawn[drawn.index("<svg") :]
    head, _, content = body.partition(">")
    box = re.search(r'viewBox="([^"]*)"', head)
    assert box is not None
    content = re.sub(r"<metadata>.*?</metadata>", "", content, flags=re.DOTALL)
    # A style sheet inside a page would hold for all of the page.
    content = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", content, flags=re.DOTALL)
    # Inside tags only: what stands between them may be anybody's text.
    content = re.sub(r"<[^>]*>", lambda tag: _adapt_tag(tag[0], prefix), content)
    names = f"{prefix}-title {prefix}-description"
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box[1]}" width="100%" role="img" '
        f'style="stroke-linejoin:round;stroke-linecap:butt" '
        f'aria-labelledby="{names}">'
    )
    words = (
        f'<title id="{prefix}-title">{escape_xml(title)}</title>'
        f'<desc id="{prefix}-description">{escape_xml(description)}</desc>'
    )
    return opening + words + ("" if embedded else _THEMES) + content


def _adapt_tag(tag: str, prefix: str) -> str:
    tag = tag.replace("xlink:href=", "href=").replace(INK, "currentColor")
    tag = tag.replace("'DejaVu Sans'", _FONTS)
    tag = re.sub(r'\bid="', f'id="{prefix}-', tag)
    return re.sub(r'href="#', f'href="#{prefix}-', tag).replace("url(#", f"url(#{prefix}-")


def escape_xml(text: str) -> str:
    """Return a text that may stand in XML, with marks for characters that it forbids."""
    return escape(show_controls(text))


def show_controls(text: str) -> str:
    """Return a text on one line, with the Unicode pictures of control characters in their place."""
    return "".join(_show_character(char) for char in text)


def _show_character(char: str) -> str:
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    is_forbidden = 0x80 <= code < 0xA0 or 0xD800 <= code < 0xE000 or code in (0xFFFE, 0xFFFF)
    # Marks of direction could turn around the text that follows them.
    return "\ufffd" if is_forbidden or 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069 else char
