import json
from pathlib import Path

import pytest

from hmoe import ConfigError, DataError
from hmoe.config.run import parse_bpe_size
from hmoe.data.tokenizer import ByteTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer, train_bpe
from tests.conftest import sentences
from tests.data import kinds

TEXTS = ["Hello, world!", "", "é ü 漢字 \U0001f600\n\ttabs", "a<|endoftext|>b </s> c", "\x00\r\n"]


def test_bytes_round_trip() -> None:
    tokenizer = ByteTokenizer()
    for text, ids in zip(TEXTS, tokenizer.encode(TEXTS), strict=True):
        assert tokenizer.decode(ids) == text
        assert len(ids) == len(text.encode())
    assert tokenizer.decode([256, 104, 105, 256]) == "hi"


def test_bpe_round_trip_and_control_tokens_typed_as_text_are_text() -> None:
    tokenizer = train_bpe([sentences(1, 200), *TEXTS], 300)
    assert tokenizer.vocab_size == 300
    for text, ids in zip(TEXTS, tokenizer.encode(TEXTS), strict=True):
        assert tokenizer.decode(ids) == text
        assert tokenizer.separator not in ids
    assert len(tokenizer.encode([sentences(1, 200)])[0]) < len(sentences(1, 200)) / 2


def test_training_gives_the_same_bytes_twice() -> None:
    a, b = (train_bpe((sentences(i, 50) for i in range(40)), 400) for _ in range(2))
    assert a.content == b.content
    assert a.fingerprint == b.fingerprint
    assert train_bpe([sentences(99, 50)], 400).fingerprint != a.fingerprint


def test_a_local_hugging_face_tokenizer_is_loaded(tmp_path: Path) -> None:
    trained = train_bpe([sentences(1, 100)], 300)
    (tmp_path / "tokenizer.json").write_bytes(trained.content)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(path)
        assert loaded.fingerprint == trained.fingerprint
        assert loaded.encode(["a bird"]) == trained.encode(["a bird"])
        assert loaded.separator == 0


def test_truncation_and_padding_in_the_file_do_not_cut_documents(tmp_path: Path) -> None:
    tree = json.loads(train_bpe([sentences(1, 100)], 300).content)
    tree["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    assert len(load_tokenizer(tmp_path).encode([sentences(2, 5)])[0]) > 20


def test_ids_with_holes_count_up_to_the_largest(tmp_path: Path) -> None:
    tree = json.loads(train_bpe([sentences(1, 100)], 300).content)
    last = max(tree["model"]["vocab"], key=tree["model"]["vocab"].get)
    tree["model"]["vocab"][last] = 70_000
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    assert load_tokenizer(tmp_path).vocab_size == 70_001


def test_the_end_token_may_be_named_beside_it(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(train_bpe([sentences(1, 100)], 300).content)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "a"}}))
    assert load_tokenizer(tmp_path).separator != 0
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<nowhere>"}))
    with pytest.raises(DataError, match="no end-of-text token"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_files_that_are_no_tokenizer(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04nonsense")
    with pytest.raises(DataError, match=name):
        load_tokenizer(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        load_tokenizer(tmp_path / "absent.json")


@pytest.mark.parametrize("name", ["bpe:", "bpe:256", "bpe:x", "bpe:-5", "bpe:99999999999"])
def test_bad_bpe_sizes(name: str) -> None:
    with pytest.raises(ConfigError, match="bpe:8192"):
        parse_bpe_size(name)
    assert parse_bpe_size("bytes") is None


@pytest.mark.parametrize("kind", ["bytes", "bpe", "sentencepiece"])
def test_bytes_of_single_tokens_add_up_to_the_text(kind: str) -> None:
    if kind == "bytes":
        tokenizer: Tokenizer = ByteTokenizer()
    elif kind == "bpe":
        tokenizer = train_bpe([sentences(1, 200), *TEXTS], 300)
    else:
        tokenizer = SentencePieceTokenizer(kinds.sentencepiece_model(sentences(1, 200)), "test")
    for text, ids in zip(TEXTS[:4], tokenizer.encode(TEXTS[:4]), strict=True):
        joined = b"".join(map(tokenizer.token_bytes, ids)).decode()
        expected = text if kind != "sentencepiece" else tokenizer.decode(ids)
        assert joined.removeprefix(" " if kind == "sentencepiece" else "") == expected
    assert tokenizer.token_bytes(tokenizer.separator) == b""
    assert tokenizer.separator in tokenizer.specials.values()
