"""Plain text of manual pages in roff."""

import re

_FONTS = ("B", "I", "R", "BR", "BI", "IR", "RB", "RI", "IB", "SM", "SB")
_PARAGRAPHS = ("SH", "SS", "PP", "P", "LP", "TP", "IP", "HP")
_ALTERNATING = frozenset(
    ("BR", "BI", "IR", "RB", "RI", "IB")
)  # fonts change from word to word: no space between
_REQUEST = re.compile(r"[.'][ \t]*([A-Za-z]+)[ \t]*(.*)")
_ARGUMENT = re.compile(r'"((?:[^"]|"")*)"?|(\S+)')
_IGNORED = re.compile(r'(?<!\\)\\(".*|\n)')  # comments, and the end of a line that goes on
_ESCAPES = {
    r"\-": "-", r"\e": "\\", "\\\\": "\\",
    r"\&": "", r"\/": "", r"\,": "", r"\ ": " ", r"\~": " ", r"\|": "", r"\^": "", r"\:": "",
    r"\(aq": "'", r"\(dq": '"', r"\(bu": "*", r"\(em": "—", r"\(en": "–", r"\(lq": "“", r"\(rq": "”", r"\(oq": "‘",
    r"\(cq": "’", r"\(mi": "-", r"\(rs": "\\", r"\(ha": "^", r"\(ti": "~", r"\(ga": "`", r"\(co": "©", r"\(mu": "×",
    r"\(->": "→", r"\(<=": "≤", r"\(>=": "≥", r"\(+-": "±", r"\(at": "@", r"\(sh": "#", r"\(ul": "_", r"\(ba": "|",
}  # fmt: skip
_FONT = re.compile(r"\\f(\[[^\]]*\]|\(..|.)|\\s[-+]?\d|\\c$")
_ESCAPE = re.compile(r"\\(\*?\[[^\]]*\]|\*?\(..|\*.|.)")


def convert_roff(page: str) -> str:
    """Return the text of a manual page: headings and paragraphs apart, fonts and comments gone."""
    lines = []
    for line in _IGNORED.sub("", page).split("\n"):
        request = _REQUEST.match(line)
        if request is None:
            lines.append(line if not line.startswith((".", "'")) else "")
        elif request[1] in _PARAGRAPHS:
            lines += ["", _join_arguments(request[2])]
        elif request[1] in _FONTS:
            lines.append(_join_arguments(request[2], "" if request[1] in _ALTERNATING else " "))
        elif request[1] == "TH":
            lines.append(_join_arguments(request[2]))
    text = _replace_escapes("\n".join(lines))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _join_arguments(words: str, joint: str = " ") -> str:
    arguments = [quoted.replace('""', '"') or plain for quoted, plain in _ARGUMENT.findall(words.strip())]
    return joint.join(arguments)


def _replace_escapes(text: str) -> str:
    text = re.sub(_FONT.pattern, "", text, flags=re.MULTILINE)

    def replace(escape: re.Match[str]) -> str:
        bracketed = re.fullmatch(r"\\\[(..)\]", escape[0])  # \[aq] is \(aq
        return _ESCAPES.get(rf"\({bracketed[1]}" if bracketed else escape[0], "")

    return _ESCAPE.sub(replace, text)
