"""Small tokenizers: tokenizer.json files of every kind of model and decoder, and a SentencePiece model."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

LETTERS = "abcdefghijklmnopqrstuvwxyzT.!"
SPECIALS = ["<unk>", "<s>", "</s>"]
UNDERLINE = "\u2581"
METASPACE = {"type": "Metaspace", "replacement": UNDERLINE, "prepend_scheme": "always", "split": True}
BYTE_FALLBACK = decoders.Sequence(
    [decoders.Replace(UNDERLINE, " "), decoders.ByteFallback(), decoders.Fuse()]
)


def vocabulary(*pieces: str) -> dict[str, int]:
    return {piece: token for token, piece in enumerate([*SPECIALS, *pieces])}


def llama() -> Tokenizer:
    """Letters, and bytes for all else."""
    vocab = vocabulary(*(f"<0x{byte:02X}>" for byte in range(256)), UNDERLINE, *LETTERS)
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=[], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(UNDERLINE), normalizers.Replace(" ", UNDERLINE)]
    )
    tokenizer.decoder = decoders.Sequence([BYTE_FALLBACK, decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


def unigram() -> Tokenizer:
    """`</s>` stands in the vocabulary, as in T5's."""
    pieces = [[name, 0.0] for name in SPECIALS] + [[UNDERLINE + "the", -2.0], [UNDERLINE + "bird", -3.0]]
    pieces += [[piece, -5.0] for piece in [UNDERLINE, "<", ">", "/", *LETTERS]]
    added = [_added(token, name) for token, name in enumerate(SPECIALS)]
    return Tokenizer.from_str(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": METASPACE, "post_processor": None, "decoder": METASPACE,
        "model": {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": False},
    }))  # fmt: skip


def _added(token: int, content: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": content, "special": True, **flags}


def word_level(unknown: str = "<unk>") -> Tokenizer:
    """No decoder; nothing says that `</s>` is a control token but its name."""
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary("the", "bird"), unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


def word_piece(unknown: str = "<unk>") -> Tokenizer:
    vocab = vocabulary(
        "the", "bird", "sing", "##s", ".", *(f"##{letter}" for letter in LETTERS), *LETTERS[:-2]
    )
    tokenizer = Tokenizer(models.WordPiece(vocab=vocab, unk_token=unknown))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


def suffix_bpe() -> Tokenizer:
    pieces = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "th", "the</w>"]
    merges = [("t", "h"), ("th", "e</w>")]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary(*pieces), merges=merges, unk_token="<unk>", end_of_word_suffix="</w>")
    )
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.WhitespaceSplit(), decoders.BPEDecoder("</w>")
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


def forgetful_bpe() -> Tokenizer:
    """Neither bytes nor an unknown token: what it does not know vanishes."""
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary(*LETTERS), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


def byte_level(begin: bool = True) -> Tokenizer:
    """As LLaMA-3's: `</s>` is a whole word of a vocabulary whose words are looked up before merges."""
    from hmoe.data.byte_letters import map_letters_to_bytes

    vocab = vocabulary(*map_letters_to_bytes())
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if begin:
        tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    return tokenizer


def with_decoder(tokenizer: Tokenizer, decoder: Any) -> Tokenizer:
    tokenizer.decoder = decoder
    return tokenizer


KINDS = {
    "llama": llama,
    "unigram": unigram,
    "word level": word_level,
    "word piece": word_piece,
    "suffix": suffix_bpe,
    "byte level": byte_level,
    "metaspace": lambda: with_decoder(llama(), decoders.Metaspace(prepend_scheme="never")),
    "ctc": lambda: with_decoder(suffix_bpe(), decoders.CTC("a", "b")),
    "strip": lambda: with_decoder(llama(), decoders.Sequence([BYTE_FALLBACK, decoders.Strip(" ", 0, 1)])),
    "replace": lambda: with_decoder(llama(), decoders.Sequence([BYTE_FALLBACK, decoders.Replace("th", "T")])),
}


def write(tokenizer: Tokenizer, folder: Path) -> Path:
    file = folder / "tokenizer.json"
    tokenizer.save(str(file))
    return file


def sentencepiece_model(text: str) -> bytes:
    import io

    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.split(". ")), model_writer=out, vocab_size=300, byte_fallback=True,
        model_type="bpe", minloglevel=2,
    )  # fmt: skip
    return out.getvalue()
