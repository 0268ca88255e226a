import numpy as np
import pytest

from hmoe.analyze.senses import map_senses, read_senses
from hmoe.errors import DataError

NOUNS = """  1 This software and database is being provided to you, the LICENSEE, by
  2 Princeton University under the following license.
bank n 10 5 @ ~ #m %p + 10 4 08420278 02787772 09213565 08462066
ice_cream n 1 4 @ ~ #p %p 1 1 07614500
"""
VERBS = "  1 This software\nbank v 8 4 @ ~ * + 8 2 02039413 02343595\n"
SENSES = """bank%1:17:01:: 09213565 1 25
bank%2:38:00:: 02039413 1 0
bank%1:14:00:: 08420278 2 20
able%5:00:00:capable:00 00306663 3 0
"""


def _write(folder, text, name="senses.tsv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        "bank\t18\nThe\t1\n",
        "# from a dictionary\nword\tsenses\n\nbank\t18\nthe\t1",
        "word,senses\r\nbank,18\r\nThe,1\r\n",
        '\ufeffbank,18\n"the",1\nBANK,18\n',
    ],
)
def test_reads_lists(tmp_path, text):
    assert read_senses(_write(tmp_path, text)) == {"bank": 18, "the": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bank\t18\nriver\tmany\n", "senses.tsv:2: 'many' senses, must be a whole number of at least 1"),
        ("bank\t0\n", "senses.tsv:1: '0' senses"),
        ("bank\t1.5\n", "senses.tsv:1: '1.5' senses"),
        ("bank\t-2\n", "senses.tsv:1: '-2' senses"),
        ("word\tsenses\nword\tsenses\n", "senses.tsv:2: 'senses' senses"),
        ("bank 18\n", "senses.tsv:1: 'bank 18' has 1 columns"),
        ("bank,18,n\n", "has 3 columns"),
        ("\t18\n", "senses.tsv:1: '\\t18' has no word"),
        ("bank\t18\n# again\nBank\t2\n", "senses.tsv:3: 'bank' has 2 senses, and 18 in line 1"),
        (b"bank\t18\ncaf\xe9\t1\n", "senses.tsv:2: b'caf\\xe9\\t1\\n' is no UTF-8"),
        ("# nothing\n", "senses.tsv: has no words"),
    ],
)
def test_faults_are_named(tmp_path, text, message):
    with pytest.raises(DataError) as caught:
        read_senses(_write(tmp_path, text))
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.tsv: cannot be read: No such file"):
        read_senses(tmp_path / "none.tsv")
    with pytest.raises(DataError, match=r"has none of WordNet's files index\.sense"):
        read_senses(tmp_path)


def test_reads_wordnet(tmp_path):
    _write(tmp_path, NOUNS, "index.noun")
    _write(tmp_path, VERBS, "index.verb")
    assert read_senses(tmp_path / "index.noun") == {"bank": 10, "ice cream": 1}
    assert read_senses(tmp_path) == {"bank": 18, "ice cream": 1}
    _write(tmp_path, SENSES, "index.sense")
    assert read_senses(str(tmp_path)) == {"bank": 3, "able": 1}
    _write(tmp_path, "bank\t3\n", "index.sense")
    with pytest.raises(DataError, match=r"index\.sense:1: 'bank\\t3' is no line of WordNet's index\.sense"):
        read_senses(tmp_path)
    _write(tmp_path, "bank n ten 5 @\n", "index.adv")
    with pytest.raises(DataError, match=r"index\.adv:1: 'ten' senses"):
        read_senses(tmp_path / "index.adv")
    _write(tmp_path, "bank\t10\n", "index.adj")
    with pytest.raises(DataError, match=r"index\.adj:1: .* is no line of WordNet's index"):
        read_senses(tmp_path / "index.adj")


def test_maps_whole_words_only():
    senses = {"bank": 18, "able": 4}
    texts = [" bank", "bank", " Bank", "able", " banks", " ", "", "\n"]
    np.testing.assert_array_equal(map_senses(senses, texts), [18, np.nan, 18] + [np.nan] * 5)
    np.testing.assert_array_equal(map_senses(senses, ["bank", "able", "x", " "]), [18, 4, np.nan, np.nan])
    begins = np.array([False, True, False])
    np.testing.assert_array_equal(map_senses(senses, ["bank", "able", " bank"], begins), [np.nan, 4, np.nan])
