"""Control tokens never come from a text, whatever the model; tokenizers that cannot encode are refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from hmoe import DataError
from hmoe.data.hugging_face_tokenizer import HuggingFaceTokenizer
from hmoe.data.tokenizer import load_tokenizer
from tests.data import kinds

TYPED = ["the </s> bird", "</s>", "the</s>bird <s> </s></s>", "<s>the"]


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_control_tokens_that_are_typed_are_text(kind: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(kinds.write(kinds.KINDS[kind](), tmp_path))
    for ids in tokenizer.encode([*TYPED, "the bird"]):
        assert ids
        assert not {1, 2} & set(ids)
    if kind in ("llama", "byte level", "unigram"):
        assert [tokenizer.decode(ids) for ids in tokenizer.encode(TYPED)] == TYPED
    [ids] = tokenizer.encode(["the"])
    assert tokenizer.decode([2, *ids, 1, 2]) == tokenizer.decode(ids)
    assert {"</s>": 2}.items() <= tokenizer.specials.items()


def test_a_separator_that_is_an_ordinary_word_with_merges_is_hidden_from_texts(tmp_path: Path) -> None:
    file = kinds.write(kinds.suffix_bpe(), tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "the</w>"}))
    tokenizer = load_tokenizer(file)
    assert tokenizer.separator == tokenizer.vocab_size - 1
    [ids] = tokenizer.encode(["the bird"])
    assert tokenizer.separator not in ids
    assert tokenizer.decode(ids) == "the bird"


def without_unknown_id() -> Tokenizer:
    tree = json.loads(kinds.unigram().to_str())
    tree["model"]["unk_id"] = None
    return Tokenizer.from_str(json.dumps(tree))


def unknown_is_the_end() -> Tokenizer:
    tree = json.loads(kinds.unigram().to_str())
    tree["model"]["unk_id"] = 2
    return Tokenizer.from_str(json.dumps(tree))


def without_letters() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.add_special_tokens(kinds.SPECIALS)
    return tokenizer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kinds.word_piece("[UNK]"), r"cannot encode every text: .*\[UNK\]"),
        (lambda: kinds.word_level("[UNK]"), r"cannot encode every text: .*\[UNK\]"),
        (without_unknown_id, "cannot encode every text: .*unk_id"),
        (unknown_is_the_end, "unknown text would become </s>, which ends texts"),
        (without_letters, "gives no token for any text"),
    ],
)
def test_tokenizers_that_cannot_encode_are_refused(
    make: Callable[[], Tokenizer], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=rf"tokenizer\.json: {message}"):
        load_tokenizer(kinds.write(make(), tmp_path))


def test_an_unknown_token_that_ends_texts_is_not_given_by_bpe() -> None:
    tokenizer = kinds.suffix_bpe()
    tokenizer.model.unk_token = "</s>"
    loaded = HuggingFaceTokenizer(tokenizer.to_str().encode(), "x")
    assert loaded.separator not in loaded.encode(["the \u6f22"])[0]


def test_panics_of_the_library_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Panic(BaseException):
        pass

    class Panicking:
        def decode_batch(self, *_: object, **__: object) -> None:
            raise Panic("index out of bounds\nat strip.rs")

    tokenizer = load_tokenizer(kinds.write(kinds.llama(), tmp_path))
    monkeypatch.setattr(tokenizer, "_tokenizer", Panicking())
    with pytest.raises(DataError, match=r"tokenizer\.json: cannot decode: index out of bounds at strip\.rs$"):
        tokenizer.decode([9])


def test_stored_dropout_does_not_count(tmp_path: Path) -> None:
    tokenizer = kinds.suffix_bpe()
    tokenizer.model.dropout = 1.0  # no merge at all
    assert len(load_tokenizer(kinds.write(tokenizer, tmp_path)).encode(["the"])[0]) == 1
