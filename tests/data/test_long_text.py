"""A long text is encoded in pieces: nothing is lost, and the ids are those of the whole text."""

import random

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from hmoe.data import long_text
from hmoe.data.long_text import cut_text, encode_text, encode_texts
from hmoe.data.tokenizer import ByteTokenizer, HuggingFaceTokenizer, train_bpe

WORDS = [
    "The",
    "cat",
    "don't",
    "12345",
    "naïve",
    "北京大学",
    "。",
    "e\u0301",
    "...",
    "(x)",
    "🙂",
    "a,b",
    "\n\n",
    "\t",
]
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def text(words: int) -> str:
    rng = random.Random(7)
    return "".join(rng.choice(WORDS) + rng.choice([" ", " ", "", "  ", "\n"]) for _ in range(words))


def llama_3() -> HuggingFaceTokenizer:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(LLAMA_3), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([text(300)], trainer)
    return HuggingFaceTokenizer(tokenizer.to_str().encode(), "test")


def llama_2() -> HuggingFaceTokenizer:
    """Without a pre-tokenizer; a space before every text is its own, so a space is dropped where a piece ends."""
    vocab = {"</s>": 0, "<unk>": 1} | {f"<0x{byte:02X}>": 2 + byte for byte in range(256)}
    for letter in "\u2581Thecatdon'12345":
        vocab.setdefault(letter, len(vocab))
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=[], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Fuse()
    return HuggingFaceTokenizer(tokenizer.to_str().encode(), "test")


@pytest.fixture(autouse=True)
def _short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_text, "PIECE_CHARS", 600)
    monkeypatch.setattr(long_text, "_SEARCH_CHARS", 300)
    monkeypatch.setattr(long_text, "_CALL_CHARS", 2000)


@pytest.mark.parametrize("make", [ByteTokenizer, lambda: train_bpe([text(300)], 400), llama_3, llama_2])
def test_ids_are_those_of_the_whole_text(make: "type[ByteTokenizer]") -> None:
    tokenizer, whole = make(), text(1500)
    assert len(list(cut_text(whole, tokenizer))) > 8
    assert encode_text(tokenizer, whole) == tokenizer.encode([whole])[0]


def test_texts_keep_their_numbers_and_ends() -> None:
    texts = ["short", text(700), "", "end"]
    tokenizer = ByteTokenizer()
    joined: dict[int, list[int]] = {}
    for index, ids, last in encode_texts(tokenizer, texts):
        assert index == len(joined) - (index in joined)  # in order
        joined.setdefault(index, []).extend([*ids, 256] if last else ids)
    assert [joined[index] for index in range(4)] == [[*text.encode(), 256] for text in texts]


@pytest.mark.parametrize("whole", ["x" * 5000, " " * 5000, "北京" * 2500, text(1000)])
def test_no_text_is_lost_and_no_piece_is_long(whole: str) -> None:
    for tokenizer in (ByteTokenizer(), None):
        pieces = list(cut_text(whole, tokenizer))
        assert "".join(piece for piece, _ in pieces) == whole
        assert max(len(piece) for piece, _ in pieces) <= 600
        assert [last for _, last in pieces] == [False] * (len(pieces) - 1) + [True]


def test_a_tokenizer_never_gets_much_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    encode = ByteTokenizer.encode

    def measured(self: ByteTokenizer, texts: list[str]) -> list[list[int]]:
        sizes.append(sum(map(len, texts)))
        return encode(self, texts)

    monkeypatch.setattr(ByteTokenizer, "encode", measured)
    encode_text(ByteTokenizer(), "word " * 10_000)
    assert max(sizes) < 2000 + 600


def test_a_tokenizer_trained_on_pieces_is_the_one_trained_on_the_whole() -> None:
    whole = text(2000)
    pieces = [piece for piece, _ in cut_text(whole, None)]
    assert len(pieces) > 5
    assert train_bpe(pieces, 400).fingerprint == train_bpe([whole], 400).fingerprint
