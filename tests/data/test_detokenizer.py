"""Text as it comes is the text of all tokens together, for every kind of decoder."""

import random
from pathlib import Path

import pytest

from hmoe.data.tokenizer import ByteTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer
from tests.conftest import sentences
from tests.data import kinds


def tokenizer_of(kind: str, folder: Path) -> Tokenizer:
    if kind == "bytes":
        return ByteTokenizer()
    if kind == "sentencepiece":
        return SentencePieceTokenizer(kinds.sentencepiece_model(sentences(1, 200)), "test")
    return load_tokenizer(kinds.write(kinds.KINDS[kind](), folder))


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece", *kinds.KINDS])
def test_pieces_join_to_what_decode_gives(kind: str, tmp_path: Path) -> None:
    tokenizer, rng = tokenizer_of(kind, tmp_path), random.Random(0)
    for _ in range(60):
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(20)]
        detokenizer, before = tokenizer.detokenizer(), ""
        for token in ids:
            detokenizer.add(token)
            assert detokenizer.settled.startswith(before)  # what was shown is never taken back
            before = detokenizer.settled
        assert detokenizer.text == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece", *kinds.KINDS])
def test_an_answer_continues_its_prompt(kind: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(kind, tmp_path)
    prompt, answer = tokenizer.encode(["the the", "bird the"])
    detokenizer = tokenizer.detokenizer(prompt)
    for token in answer:
        detokenizer.add(token)
    assert tokenizer.decode(prompt) + detokenizer.text == tokenizer.decode([*prompt, *answer])


def test_a_character_in_several_bytes_settles_when_it_is_whole(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("byte level", tmp_path)
    detokenizer, texts = tokenizer.detokenizer(), []
    for token in tokenizer.encode(["a\u20ac!"])[0]:
        detokenizer.add(token)
        texts.append((detokenizer.settled, detokenizer.readable()))
    assert texts == [("a", "a"), ("a", "a"), ("a", "a"), ("a\u20ac", "a\u20ac"), ("a\u20ac!", "a\u20ac!")]


def test_bytes_that_a_later_byte_makes_invalid_are_not_settled(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("llama", tmp_path)
    letter, invalid, end, after = 3 + ord("A"), 3 + 0xFF, 2, tokenizer.encode(["b"])[0][-1]
    detokenizer = tokenizer.detokenizer()
    for token in (letter, end, invalid):
        detokenizer.add(token)
    assert detokenizer.settled == ""
    detokenizer.add(after)
    assert detokenizer.settled == tokenizer.decode([letter, invalid, after]) == "\ufffd\ufffdb"


@pytest.mark.parametrize("kind", [kind for kind in kinds.KINDS if kind not in ("replace", "ctc")])
def test_bytes_of_tokens_join_to_the_text(kind: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(kind, tmp_path)
    for text in ("the bird the", "the \u6f22 bird"):
        [ids] = tokenizer.encode([text])
        assert b"".join(map(tokenizer.token_bytes, ids)).decode().strip() == tokenizer.decode(ids).strip()
    assert [tokenizer.token_bytes(token) for token in (1, 2, 5000)] == [b"", b"", b""]
