"""How `make site` builds these pages as a site that can be read from disk: Sphinx with MyST, nothing fetched."""

import re
from typing import Any

project = "hmoe"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "hmoe"
exclude_patterns = ["generate.py"]
myst_heading_anchors = 3

_LINK_OUT = re.compile(r"\[([^\]]+)\]\((?:\.\./)*((?:src|tests|benchmarks)/[^)#]*|[A-Z]+\.(?:md|cff))[^)]*\)")


def drop_links_out(app: Any, page: str, source: list[str]) -> None:
    """Name files of the repository, to which pages link, in words: the site does not hold them."""
    source[0] = _LINK_OUT.sub(lambda link: f"{link[1]} (`{link[2]}`)", source[0])


def setup(app: Any) -> None:
    app.connect("source-read", drop_links_out)
    app.connect("include-read", lambda app, path, page, source: drop_links_out(app, page, source))
