import gzip
from pathlib import Path

from hmoe.data.corpus_sources.dictionaries import read_dictd_entries, read_wordnet_glosses


def test_entries_are_grouped_without_origins_and_notices(tmp_path: Path) -> None:
    entry = 'Abaca \\Ab"a*ca\\, n.\n   Hemp.\n   [1913 Webster]\n\n   2. A second sense.\n      [PJC]'
    long = "Zeal\n   " + 9000 * "z"
    file = tmp_path / "gcide.dict.dz"
    file.write_bytes(
        gzip.compress(f"\n\n00-database-url\n   ftp://x\n\n{entry}\n\n\n{long}\n\nZo\n   An ox.\n".encode())
    )
    assert list(read_dictd_entries(file)) == [
        ("gcide#1", 'Abaca \\Ab"a*ca\\, n.\n   Hemp.\n\n   2. A second sense.\n\n' + long),
        ("gcide#2", "Zo\n   An ox."),
    ]


def test_glosses_have_their_synonyms(tmp_path: Path) -> None:
    for part in ("noun", "verb", "adj", "adv"):
        words = " ".join(f"w_{i} 0" for i in range(11))  # 0b in hexadecimal digits
        (tmp_path / f"data.{part}").write_text(
            f"  1 licence\n00 03 n 0b {words} 000 | a | b  \n00 03 n 01 x 0 | y\n"
        )
    synonyms = ", ".join(f"w {i}" for i in range(11))
    assert list(read_wordnet_glosses(tmp_path)) == [
        (f"{part}#1", f"{synonyms}: a | b\nx: y") for part in ("noun", "verb", "adj", "adv")
    ]
