"""Text <-> token ids: bytes, byte-level BPE trained here, any Hugging Face tokenizer.json, or a SentencePiece model."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer as HuggingFace
from tokenizers import decoders, models, pre_tokenizers, trainers

from hmoe.errors import DataError, missing_extra

_SEPARATOR = "<|endoftext|>"
_END_TOKENS = ("</s>", _SEPARATOR, "<|end_of_text|>", "<eos>", "<|im_end|>", "[SEP]")
_BYTES = 256


class Tokenizer(Protocol):
    """What the rest of the package knows of a tokenizer.

    Attributes:
        vocab_size: ids are below this.
        separator: id put after every document.
        ends: ids that end a text: the separator, and others that a chat model may write.
        fingerprint: SHA-256 of the tokenizer's definition.
        file_name: name of its file in a data or run folder; "" for bytes, which need none.
        content: bytes of that file.
        specials: control tokens, text -> id; `encode` never gives them.
    """

    vocab_size: int
    separator: int
    ends: tuple[int, ...]
    fingerprint: str
    file_name: str
    content: bytes
    specials: dict[str, int]

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, over all cores; special tokens typed in the text are plain text."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Text of ids, separators left out."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """UTF-8 of one token within a text, perhaps a part of a character; empty for control tokens and holes."""
        ...


class ByteTokenizer:
    """Every UTF-8 byte is a token; id 256 separates documents."""

    vocab_size = _BYTES + 1
    separator = _BYTES
    ends: tuple[int, ...] = (_BYTES,)
    fingerprint = hashlib.sha256(b"hmoe bytes").hexdigest()
    file_name = ""
    content = b""
    specials: dict[str, int] = {_SEPARATOR: _BYTES}  # noqa: RUF012 - never changed

    def encode(self, texts: list[str]) -> list[list[int]]:
        """See Tokenizer."""
        return [list(text.encode()) for text in texts]

    def decode(self, ids: list[int]) -> str:
        """See Tokenizer."""
        return bytes(i for i in ids if i < _BYTES).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """See Tokenizer."""
        return bytes([token]) if token < _BYTES else b""


class HuggingFaceTokenizer:
    """A `tokenizer.json`; the separator is its end-of-text token."""

    file_name = "tokenizer.json"

    def __init__(self, content: bytes, where: str, separator: str | None = None, ends: Sequence[int] = ()) -> None:
        try:
            self._tokenizer = HuggingFace.from_str(content.decode())
        except Exception as error:  # tokenizers raises bare Exception
            raise DataError(f"{where}: not a Hugging Face tokenizer: {' '.join(str(error).split())[:200]}") from None
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()  # settings for batches of fixed length would cut documents
        self._tokenizer.no_padding()
        self.content = content
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self.vocab_size = max(self._tokenizer.get_vocab().values(), default=-1) + 1  # ids may have holes
        names = [separator] if separator else list(_END_TOKENS)
        ids = [i for i in map(self._tokenizer.token_to_id, names) if i is not None]
        if not ids:
            raise DataError(
                f"{where}: no end-of-text token to separate documents; looked for {', '.join(names)}; name one as separator"
            )
        self.separator = ids[0]
        self.ends = (self.separator, *(i for i in ends if i != self.separator and 0 <= i < self.vocab_size))
        added = self._tokenizer.get_added_tokens_decoder()
        self.specials = {token.content: i for i, token in added.items() if token.special}
        self._added = {i: token.content.encode() * (not token.special) for i, token in added.items()}
        self._byte_level = "ByteLevel" in json.dumps(json.loads(content).get("decoder"))

    def encode(self, texts: list[str]) -> list[list[int]]:
        """See Tokenizer."""
        return [e.ids for e in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        """See Tokenizer."""
        text: str = self._tokenizer.decode([i for i in ids if i not in self.ends], skip_special_tokens=False)
        return text

    def token_bytes(self, token: int) -> bytes:
        """See Tokenizer."""
        piece = self._tokenizer.id_to_token(token)
        if piece is None or token in self._added or token in self.ends:
            return self._added.get(token, b"")
        if self._byte_level:
            return b"".join(bytes([_BYTE_OF[c]]) if c in _BYTE_OF else c.encode() for c in piece)
        return _sentencepiece_bytes(piece)


class SentencePieceTokenizer:
    """A SentencePiece model such as LLaMA-2's `tokenizer.model`; needs the [data] extra."""

    file_name = "tokenizer.model"

    def __init__(self, content: bytes, where: str) -> None:
        try:
            import sentencepiece  # noqa: PLC0415 - optional extra
        except ImportError:
            raise missing_extra("SentencePiece tokenizers", "data") from None
        try:
            self._model: Any = sentencepiece.SentencePieceProcessor(model_proto=content)
        except RuntimeError as error:
            raise DataError(f"{where}: not a SentencePiece model: {' '.join(str(error).split())[:200]}") from None
        if self._model.eos_id() < 0:
            raise DataError(f"{where}: the SentencePiece model has no end-of-text token to separate documents")
        self.content = content
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self.vocab_size = self._model.vocab_size()
        self.separator = self._model.eos_id()
        self.ends: tuple[int, ...] = (self.separator,)
        controls = filter(self._model.is_control, range(self.vocab_size))
        self.specials = {self._model.id_to_piece(i): i for i in controls}

    def encode(self, texts: list[str]) -> list[list[int]]:
        """See Tokenizer."""
        ids: list[list[int]] = self._model.encode(texts, num_threads=-1)
        return ids

    def decode(self, ids: list[int]) -> str:
        """See Tokenizer."""
        text: str = self._model.decode([i for i in ids if i != self.separator])
        return text

    def token_bytes(self, token: int) -> bytes:
        """See Tokenizer."""
        if token >= self.vocab_size or self._model.is_control(token):
            return b""
        return _sentencepiece_bytes(self._model.id_to_piece(token))


def load(path: str | Path, separator: str | None = None) -> Tokenizer:
    """A tokenizer from a `tokenizer.json`, a SentencePiece `.model`, or a folder that holds one of them.

    A folder without either, made with the byte tokenizer, gives that. Beside a tokenizer.json, `tokenizer_config.json`
    may name the end-of-text token, and generation_config.json or config.json others that end a text.
    `separator` names the end-of-text token in their place.

    Raises:
        DataError: if it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        files = [path / name for name in ("tokenizer.json", "tokenizer.model") if (path / name).is_file()]
        if not files and separator is None:
            return ByteTokenizer()
        if not files:
            raise DataError(f"{path}: holds no tokenizer.json, which a separator could be named for")
        path = files[0]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if path.suffix == ".model" and separator is not None:
        raise DataError(f"{path}: separator = {separator!r}: a SentencePiece model has its own")
    if path.suffix == ".model":
        return SentencePieceTokenizer(content, str(path))
    end = separator or _end_token(path.with_name("tokenizer_config.json"))
    return HuggingFaceTokenizer(content, str(path), end, _end_ids(path.parent))


def begin_tokens(tokenizer: Tokenizer) -> list[int]:
    """What a Hugging Face tokenizer.json puts before every text, such as LLaMA's <s>; the harness's `hf` model does so too."""
    if tokenizer.file_name != "tokenizer.json":
        return []
    ids: list[int] = HuggingFace.from_str(tokenizer.content.decode()).encode("", add_special_tokens=True).ids
    return [token for token in ids if token != tokenizer.separator]


def train_bpe(texts: Iterable[str], size: int) -> Tokenizer:
    """Byte-level BPE of up to `size` tokens (fewer if the text is too small for them)."""
    tokenizer = HuggingFace(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[_SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return HuggingFaceTokenizer(tokenizer.to_str().encode(), "trained BPE", _SEPARATOR)


def byte_letters() -> dict[str, int]:
    """The printable character that byte-level tokenizers write for each byte -> the byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(_BYTES) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(_BYTES + n): b for n, b in enumerate(others)}


_BYTE_OF = byte_letters()


def _sentencepiece_bytes(piece: str) -> bytes:
    """Of a piece in which a space is written as U+2581, and a lone byte as <0x0A>."""
    lone = re.fullmatch("<0x([0-9A-F]{2})>", piece)
    return bytes([int(lone[1], 16)]) if lone else piece.replace("\u2581", " ").encode()


def _end_token(path: Path) -> str | None:
    """The `eos_token` of a tokenizer_config.json, if there is one."""
    try:
        token = json.loads(path.read_bytes()).get("eos_token")
    except (OSError, ValueError, AttributeError):
        return None
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _end_ids(folder: Path) -> list[int]:
    """Every `eos_token_id` that a Hugging Face folder names."""
    for name in ("generation_config.json", "config.json"):
        try:
            found = json.loads((folder / name).read_bytes()).get("eos_token_id")
        except (OSError, ValueError, AttributeError):
            continue
        ids = found if isinstance(found, list) else [found]
        if ids and all(type(i) is int for i in ids):
            return ids
    return []
