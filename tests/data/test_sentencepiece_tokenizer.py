"""SentencePiece models as tokenizers."""

from pathlib import Path

from hmoe.data.tokenizer import SentencePieceTokenizer, load_tokenizer
from tests.conftest import sentences
from tests.data import kinds


def test_a_sentencepiece_model_of_llama_2s_kind(tmp_path: Path) -> None:
    import sentencepiece

    (tmp_path / "text").write_text("\n".join(sentences(i, 3) for i in range(200)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=320, model_type="bpe",
        byte_fallback=True, minloglevel=2,
    )  # fmt: skip
    tokenizer = load_tokenizer(tmp_path / "tokenizer.model")
    assert isinstance(tokenizer, SentencePieceTokenizer)
    assert tokenizer.vocab_size == 320
    assert tokenizer.separator == 2  # </s>, as in LLaMA-2
    for text in ("The old bird sings.", "é 漢"):
        assert tokenizer.decode(tokenizer.encode([text])[0]) == text
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint


def test_a_sentencepiece_folder_begins_as_it_says(tmp_path: Path) -> None:
    """The model cannot say it. An id above its vocabulary has no text."""
    (tmp_path / "tokenizer.model").write_bytes(kinds.sentencepiece_model(sentences(1, 200)))
    assert load_tokenizer(tmp_path).begin == ()
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": true}')
    tokenizer = load_tokenizer(tmp_path)
    assert [tokenizer.specials["<s>"]] == list(tokenizer.begin)
    [ids] = tokenizer.encode(["the bird"])
    assert tokenizer.decode([*ids, tokenizer.vocab_size]) == "the bird"
