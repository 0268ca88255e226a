"""A SentencePiece model as a Tokenizer; needs the [data] extra."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from hmoe.data.detokenizer import Detokenizer
from hmoe.errors import DataError, missing_extra


class SentencePieceTokenizer:
    """A SentencePiece model such as LLaMA-2's `tokenizer.model`; its control pieces never come from a text.

    The model itself puts nothing before a text; `add_bos` says that its users did, as tokenizer_config.json may.
    """

    file_name = "tokenizer.model"
    after: tuple[int, ...] = ()

    def __init__(self, content: bytes, where: str, add_bos: bool = False) -> None:
        try:
            import sentencepiece  # noqa: PLC0415 - optional extra
        except ImportError:
            raise missing_extra("SentencePiece tokenizers", "data") from None
        try:
            self._model: Any = sentencepiece.SentencePieceProcessor(model_proto=content)
        except RuntimeError as error:
            raise DataError(f"{where}: not a SentencePiece model: {' '.join(str(error).split())[:200]}") from None
        if self._model.eos_id() < 0:  # a piece of that name which users defined counts as text
            raise DataError(f"{where}: the SentencePiece model has no end-of-text token to separate documents")
        self.content = content
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self.vocab_size = self._model.vocab_size()
        self.separator = self._model.eos_id()
        self.begin: tuple[int, ...] = (self._model.bos_id(),) if add_bos and self._model.bos_id() >= 0 else ()
        self.unknown: int | None = self._model.unk_id()
        self.ends: tuple[int, ...] = (self.separator,)
        controls = filter(self._model.is_control, range(self.vocab_size))
        self.specials = {self._model.id_to_piece(i): i for i in controls}

    def encode(self, texts: list[str]) -> list[list[int]]:
        """See Tokenizer."""
        ids: list[list[int]] = self._model.encode(texts, num_threads=-1)
        return ids

    def decode(self, ids: list[int]) -> str:
        """See Tokenizer."""
        text: str = self._model.decode([i for i in ids if i != self.separator and i < self.vocab_size])
        return text

    def decode_batch(self, batch: list[list[int]]) -> list[str]:
        """Text of each list of ids."""
        return [self.decode(ids) for ids in batch]

    def detokenizer(self, context: Sequence[int] = ()) -> Detokenizer:
        """See Tokenizer."""
        return Detokenizer(self.decode, lambda token: False, context)

    def normalize(self, text: str) -> str:
        """The text as the model's own rules leave it."""
        return str(self._model.normalize(text))

    def token_bytes(self, token: int) -> bytes:
        """See Tokenizer."""
        if token >= self.vocab_size or self._model.is_control(token):
            return b""
        piece = self._model.id_to_piece(token)
        lone = re.fullmatch("<0x([0-9A-F]{2})>", piece)
        return bytes([int(lone[1], 16)]) if lone else piece.replace("\u2581", " ").encode()
