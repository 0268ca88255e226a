"""Turn text into token ids and back: bytes, BPE trained here, a tokenizer.json, or a SentencePiece model."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer as HuggingFace
from tokenizers import decoders, models, pre_tokenizers, trainers

from hmoe.data.detokenizer import Detokenizer
from hmoe.data.hugging_face_tokenizer import SEPARATOR, HuggingFaceTokenizer
from hmoe.data.sentencepiece_tokenizer import SentencePieceTokenizer
from hmoe.errors import DataError

_BYTES = 256
_LARGEST_BYTES = 1 << 28  # of a tokenizer's file; those of the largest vocabularies have a tenth
# Files of tokenizers that cannot be read here; a folder with one of them is not one of the byte tokenizer.
_OTHER_FORMATS = (
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "tiktoken.model",
)
_CONVERT = "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"


class Decoding(Protocol):
    """What generation needs of a tokenizer: it writes tokens as text."""

    def detokenizer(self, context: Sequence[int] = ()) -> Detokenizer:
        """Return what decodes tokens as they come after `context`; the pieces join to what `decode` gives."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """Return the UTF-8 of one token in a text, perhaps part of a character; none for control tokens."""
        ...


class Tokenizer(Decoding, Protocol):
    """What the rest of the package knows of a tokenizer.

    Attributes:
        vocab_size: ids are below this.
        separator: id put after every document.
        ends: ids that end a text: the separator, and others that a chat model may write.
        fingerprint: SHA-256 of the tokenizer's definition.
        file_name: name of its file in a data or run folder; "" for bytes, which need none.
        content: bytes of that file.
        specials: control tokens, text -> id; `encode` never gives them.
        begin: ids that the tokenizer's own post-processor puts before every text, such as LLaMA's <s>.
        after: ids that it puts after every text.
        unknown: id of text that the vocabulary lacks, if there is one.
    """

    vocab_size: int
    separator: int
    ends: tuple[int, ...]
    fingerprint: str
    file_name: str
    content: bytes
    specials: dict[str, int]
    begin: tuple[int, ...]
    after: tuple[int, ...]
    unknown: int | None

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text, encoded over all cores; special tokens in the text are plain text."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids, control tokens left out."""
        ...

    def decode_batch(self, batch: list[list[int]]) -> list[str]:
        """Return the text of each list of ids."""
        ...

    def normalize(self, text: str) -> str:
        """Return what the tokenizer makes of a text before it cuts it: lower case, for one."""
        ...


class ByteTokenizer:
    """The tokenizer of which every UTF-8 byte is a token; id 256 separates documents."""

    vocab_size = _BYTES + 1
    separator = _BYTES
    ends: tuple[int, ...] = (_BYTES,)
    fingerprint = hashlib.sha256(b"hmoe bytes").hexdigest()
    file_name = ""
    content = b""
    specials: dict[str, int] = {SEPARATOR: _BYTES}  # noqa: RUF012 - never changed
    begin: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    unknown: int | None = None

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the bytes of each text."""
        return [list(text.encode()) for text in texts]

    def decode(self, ids: list[int]) -> str:
        """Return the text of bytes; those that are no UTF-8 become replacement characters."""
        return bytes(token for token in ids if token < _BYTES).decode(errors="replace")

    def decode_batch(self, batch: list[list[int]]) -> list[str]:
        """Return the text of each list of bytes."""
        return [self.decode(ids) for ids in batch]

    def detokenizer(self, context: Sequence[int] = ()) -> Detokenizer:
        """Return what decodes bytes as they come after `context`."""
        return Detokenizer(self.decode, lambda token: False, context)

    def normalize(self, text: str) -> str:
        """Return the text, in which nothing is changed."""
        return text

    def token_bytes(self, token: int) -> bytes:
        """Return the byte that a token is; none for the separator."""
        return bytes([token]) if token < _BYTES else b""


def load_tokenizer(path: str | Path, separator: str | None = None) -> Tokenizer:
    """Load a tokenizer from a `tokenizer.json`, a SentencePiece `.model`, or a folder that holds one of them.

    A folder without either, made with the byte tokenizer, gives that. Next to a tokenizer.json,
    `tokenizer_config.json` may name the end-of-text token, and generation_config.json or config.json others
    that end a text. What goes before a text is for the tokenizer.json alone to say, as in transformers 5; a
    `.model` cannot say it, so there `add_bos_token` does.

    Args:
        path: the file or folder.
        separator: the end-of-text token, in place of the one that tokenizer_config.json names.

    Raises:
        DataError: if it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        files = [path / name for name in ("tokenizer.json", "tokenizer.model") if (path / name).is_file()]
        if not files and separator is not None:
            raise DataError(
                f"{path}: holds no tokenizer.json, so separator = {separator!r} has no effect",
                argument="separator",
            )
        if foreign := [name for name in _OTHER_FORMATS if not files and (path / name).is_file()]:
            raise DataError(
                f"{path}: holds {foreign[0]} but no tokenizer.json, which transformers writes: {_CONVERT}"
            )
        if not files:
            return ByteTokenizer()
        path = files[0]
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise DataError(f"{path}: larger than {_LARGEST_BYTES} bytes")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if path.suffix == ".model" and separator is not None:
        raise DataError(
            f"{path}: separator = {separator!r}: a SentencePiece model has its own", argument="separator"
        )
    config = _read_object(path.with_name("tokenizer_config.json"))
    if path.suffix == ".model":
        return SentencePieceTokenizer(content, str(path), config.get("add_bos_token") is True)
    end = separator if separator is not None else _find_token(config, "eos_token") or None
    return HuggingFaceTokenizer(content, str(path), end, _read_end_ids(path.parent))


def get_begin_tokens(tokenizer: Tokenizer) -> list[int]:
    """Return what a tokenizer puts before every text by itself, such as LLaMA's <s>, as lm-eval does."""
    return list(tokenizer.begin)


def train_bpe(texts: Iterable[str], size: int) -> Tokenizer:
    """Train a byte-level BPE of up to `size` tokens, fewer if the text is too small for them."""
    tokenizer = HuggingFace(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return HuggingFaceTokenizer(tokenizer.to_str().encode(), "trained BPE", SEPARATOR)


def _read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; return an empty one if the file is missing or holds none."""
    try:
        tree = json.loads(path.read_bytes()) if path.stat().st_size <= _LARGEST_BYTES else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _find_token(config: dict[str, Any], name: str) -> str | None:
    """Return the text of a token that a tokenizer_config.json names, as text or as an object."""
    token = config.get(name)
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _read_end_ids(folder: Path) -> list[int]:
    """Read every `eos_token_id` that a Hugging Face folder names."""
    for name in ("generation_config.json", "config.json"):
        value = _read_object(folder / name).get("eos_token_id")
        ids: list[Any] = value if isinstance(value, list) else [value]
        if ids and all(type(token) is int for token in ids):
            return ids
    return []
