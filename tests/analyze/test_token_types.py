import numpy as np

from hmoe.analyze.token_types import CLASS_NAMES, describe_token_types, find_token_ids, locate_in_words
from hmoe.data.tokenizer import ByteTokenizer, train_bpe


def test_types_are_classified_by_their_text() -> None:
    tokenizer = train_bpe(["the The THE 12 ab12 ... it's café it it the the THE THE 12 12 "] * 9, 300)
    types = describe_token_types(tokenizer, 310)  # the model has ids that the tokenizer lacks
    assert len(types.texts) == 310
    by_text = {text: token for token, text in enumerate(types.texts)}

    def name(labelling: str, text: str) -> str | None:
        number = int(types.labels[labelling][by_text[text]])
        return None if number < 0 else CLASS_NAMES[labelling][number]

    assert name("word part", " the") == "begins a word"
    assert name("word part", "e") == "goes on in a word"
    assert name("case", " THE") == "ALL CAPITALS"
    assert name("case", "T") == "Capital"
    assert name("case", "1") is None
    assert name("digits", "1") == "digits"
    assert name("digits", "e") == "no digits"
    assert name("punctuation", ".") == "punctuation"
    assert name("punctuation", " ") is None
    assert types.texts[309] == "<309>"
    assert types.lengths[by_text[" the"]] == 4
    assert all(types.labels[labelling][309] == -1 for labelling in CLASS_NAMES)


def test_parts_of_characters_have_no_class_and_go_on_in_words() -> None:
    types = describe_token_types(ByteTokenizer(), 257)
    assert types.texts[0xC3] == "<C3>"
    assert all(class_V[0xC3] == -1 for class_V in types.labels.values())
    assert types.goes_on[0xC3]
    assert types.texts[256] == "<|endoftext|>"


def test_places_in_words_do_not_depend_on_where_a_text_is_cut() -> None:
    types = describe_token_types(ByteTokenizer(), 257)
    text = np.array(list("a caf\u00e9, it's 12x\nq".encode()), np.int64)
    whole = locate_in_words(types, text)
    slow, before = [], None
    for token in text:
        goes_on = before is not None and types.goes_on[token] and types.ends_open[before]
        slow.append(slow[-1] + 1 if goes_on else 0)
        before = token
    assert whole.tolist() == slow
    assert max(slow) == 4  # of "caf\u00e9", whose last letter is two bytes
    for cut in range(1, len(text)):
        first = locate_in_words(types, text[:cut])
        rest = locate_in_words(types, text[cut:], (int(text[cut - 1]), int(first[-1])))
        assert [*first, *rest] == slow


def test_types_are_looked_up_with_and_without_their_space() -> None:
    types = describe_token_types(train_bpe(["the the of"] * 5, 300), 300)
    ids = find_token_ids(types, ["the", "nothing"])
    assert [types.texts[token] for token in ids["the"]] == ["the", " the"]
    assert ids["nothing"] == []
