"""Plain text of Perl's POD."""

import html
import re
from collections.abc import Iterator

_BLOCK = re.compile(r"^=begin\b.*?^=end\b[^\n]*$", re.MULTILINE | re.DOTALL)  # for other formats than text
_COMMAND = re.compile(r"=(\w+)[ \t]*(.*)", re.DOTALL)
_SHOWN_COMMANDS = ("head", "item")
_WIDE_CODE = re.compile(r"([A-Z])(<{2,})\s+(.*?)\s+>{2,}", re.DOTALL)  # C<< a->b >>
_CODE = re.compile(r"([A-Z])<([^<>]*)>")
_KEPT = str.maketrans("<>", "\x01\x02")  # brackets that belong to the text
_RESTORED = str.maketrans("\x01\x02", "<>")


def convert_pod(pod: str) -> str:
    """Return the text of a POD file: headings and items on lines of their own, formatting codes resolved."""
    return "\n\n".join(_convert_paragraphs(_BLOCK.sub("", pod.replace("\r\n", "\n"))))


def _convert_paragraphs(pod: str) -> Iterator[str]:
    for paragraph in re.split(r"\n[ \t]*\n+", pod.strip("\n")):
        command = _COMMAND.match(paragraph)
        if not paragraph or (command and not command[1].startswith(_SHOWN_COMMANDS)):
            continue
        if paragraph[0] in " \t":  # verbatim
            yield paragraph
        elif text := _resolve_codes(command[2] if command else paragraph).strip():
            yield text


def _resolve_codes(text: str) -> str:
    """Replace formatting codes by what they show, from the innermost ones outwards."""
    text = _WIDE_CODE.sub(lambda code: _show(code[1], code[3]).translate(_KEPT), text)
    count = 1
    while count:
        text, count = _CODE.subn(lambda code: _show(code[1], code[2]).translate(_KEPT), text)
    return text.translate(_RESTORED)


def _show(letter: str, content: str) -> str:
    if letter in "XZ":  # an entry of the index, nothing
        return ""
    if letter == "L":
        return content.partition("|")[0]
    if letter == "E":
        names = {"sol": "/", "verbar": "|"}
        return names.get(content) or html.unescape(f"&{content};" if content.isalpha() else f"&#{content};")
    return content
